"""The teacher service as a user meets it: whole experiments whose teachers are slow, away, or in the way."""

import dataclasses
import io
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from mlflow import MlflowClient
from object_store import KEY, SECRET, object_store
from odd_teacher import LIMIT, OddTeacher, odd, save_teacher, until
from rich.console import Console
from tiny import electra, reviews_job

from raykd.config.load import build, override
from raykd.config.schema import Config
from raykd.experiment import command as experiment
from raykd.experiment import stages
from raykd.experiment.command import run_experiment
from raykd.teachers.serving import ServedTeacher
from raykd.tracking import event_log as listening

pytestmark = pytest.mark.usefixtures("ray_cluster")
METRICS = {
    "raykd_student_waited_share",
    "raykd_student_requests_in_flight",
    "raykd_teacher_rows_total",
    "raykd_teacher_requests",
    "raykd_store_hits_total",
    "raykd_store_misses_total",
}
STEPS = 8  # one epoch of 60 rows, 8 at a time


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> dict[str, Any]:
    """Two given teachers and a student without dropout, one epoch, no baseline."""
    folder = tmp_path_factory.mktemp("service")
    tree = reviews_job(folder, method={"type": "kd", "alpha": 0.7, "temperature": 2.0}, baseline=False)
    tree["student"]["model"] = {**tree["student"]["model"], "config": electra(dropout=0.0)}
    tree["teachers"] = [{"name": n, "model": str(save_teacher(folder / n, i))} for i, n in enumerate("ab")]
    changes = {"training.steps": None, "training.epochs": 1, "training.eval_every": 2, "logits.block_rows": 16}
    return override(tree, {**changes, "ray.timeout_s": LIMIT, "logits.timeout_s": LIMIT})


def started(tree: dict[str, Any], **changes: Any) -> tuple[Config, Console]:
    config = build(override(tree, {key.replace("__", "."): value for key, value in changes.items()}))
    return config, Console(file=io.StringIO(), width=300)


def made_odd(monkeypatch: pytest.MonkeyPatch, folder: Path, how: str, **more: Any) -> dict[str, OddTeacher]:
    """The teachers that the next experiments get, by name."""
    found: dict[str, OddTeacher] = {}
    plain = stages.served_teacher

    def served(*args: Any) -> ServedTeacher:
        teacher = plain(*args)
        if teacher.name not in found:
            found[teacher.name] = odd(teacher, folder / teacher.name, how, **more)
        fields = {f.name: getattr(teacher, f.name) for f in dataclasses.fields(ServedTeacher)}
        return dataclasses.replace(found[teacher.name], **fields)

    monkeypatch.setattr(stages, "served_teacher", served)
    return found


def logged(config: Config, name: str) -> SimpleNamespace:
    """What MLflow has of the last run of this name."""
    client = MlflowClient(f"sqlite:///{config.output}/mlflow.db")
    (about,) = client.search_experiments(filter_string=f"name = '{config.name}'")
    query = {"filter_string": f"attributes.run_name = '{name}'", "order_by": ["attributes.start_time DESC"]}
    found = client.search_runs([about.experiment_id], **query)[0]
    curve = [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, "train/loss")]
    return SimpleNamespace(metrics=found.data.metrics, status=found.info.status, curve=curve)


def blocks(config: Config) -> list[Path]:
    return sorted((config.store / "logits").rglob("*.block"))


@pytest.fixture(scope="module")
def stored_run(tree, tmp_path_factory) -> SimpleNamespace:
    """A cold store: the teachers stop after their first block until the student has written a checkpoint."""
    folder = tmp_path_factory.mktemp("odd")
    config, console = started(tree)
    with pytest.MonkeyPatch.context() as monkeypatch:
        made_odd(monkeypatch, folder, "second", awaited=f"{config.store}/trainings//*/generation-1/checkpoint*")
        (scored,) = [s for s in run_experiment(config, "distill", console) if s.role == "student"]
    curve = logged(config, "student seed 0").curve
    return SimpleNamespace(config=config, text=console.file.getvalue(), scored=scored, curve=curve)


def test_student_trains_while_its_teachers_compute_logits(stored_run):
    """Else the teachers would have waited for it in vain."""
    assert len(blocks(stored_run.config)) == 2 * (4 + 2 + 3), "60, 20 and 40 rows, in blocks of 16"
    assert [step for step, _ in stored_run.curve] == list(range(1, STEPS + 1))
    for name in "ab":
        metrics = logged(stored_run.config, name).metrics
        assert (metrics["store/misses"], metrics["store/hits"], metrics["precompute/restarts"]) == (120, 0, 0)
        assert metrics["precompute/rows_per_s"] > 0
        assert f"logits of {name}: 120/120" in stored_run.text
    assert re.search(r"logits of a: \d+/120 \d+ rows/s, \d+ s left", stored_run.text)


@pytest.mark.slow
def test_live_on_two_workers_is_the_stored_run(stored_run, tree, tmp_path, monkeypatch):
    """Teacher actors, live, two Ray Train workers, DDP, one epoch.

    The teachers are slower than a student whose machine does other work, too, so that there is something to see.
    """
    monkeypatch.setattr(listening, "MIN_WAIT_SECONDS", 0.0)
    teachers = made_odd(monkeypatch, tmp_path, "paced", row_seconds=0.08)
    config, console = started(tree, logits__mode="live", student__workers=2)
    (scored,) = [s for s in run_experiment(config, "distill", console) if s.role == "student"]
    assert all(teacher.pids() for teacher in teachers.values()), "they were asked"
    found = logged(config, "student seed 0")
    assert [step for step, _ in found.curve] == [step for step, _ in stored_run.curve]
    expected = [loss for _, loss in stored_run.curve]
    np.testing.assert_allclose([loss for _, loss in found.curve], expected, rtol=1e-4)
    assert np.ptp(expected) > 0.05, "a curve, and no line"
    assert scored.metrics["test"]["accuracy"] == stored_run.scored.metrics["test"]["accuracy"]

    # What it is told, and what is kept of it.
    assert "logits of a: 0 computed" in console.file.getvalue(), "live: what validation and test need is in the store"
    told = re.search(
        r"student seed 0: waited (\d+)% of its time for the logits of ([ab]) \((\d+) rows/s per replica, with 1; "
        r"the student could use (\d+)\): teachers\.\2\.replicas=(\d+) would be enough",
        console.file.getvalue(),
    )
    assert told, console.file.getvalue()
    share, rate, taken, replicas = (int(told[i]) for i in (1, 3, 4, 5))
    assert share >= 5, "more than 5%, printed as a whole number"
    assert rate <= 13, "0.08 s a row"
    fewest, most = (taken - 0.5) / (rate + 0.5), (taken + 0.5) / (rate - 0.5)  # printed numbers are rounded
    assert fewest <= replicas <= max(2, most + 1)
    assert 0 <= found.metrics["train/waited_share"] <= 1
    assert found.metrics["train/requests_in_flight"] >= 0
    assert found.metrics["train/rows_per_s/a"] > 0
    until(lambda: exported() >= METRICS)


def exported() -> set[str]:
    """raykd's names on Ray's metrics port."""
    (node,) = [n for n in ray.nodes() if n["Alive"]]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as page:
        return set(re.findall(r"^ray_(raykd_\w+)", page.read().decode(), re.MULTILINE))


def test_block_that_is_missing_after_precomputing_is_computed_again(stored_run, tree, monkeypatch, caplog):
    """Somebody removes it between precomputing and the training: the student stops for a teacher and resumes."""
    plain, before, gone = experiment.score, blocks(stored_run.config), []

    def score_and_remove(*args: Any) -> Any:
        found = plain(*args)
        gone.append(max(before, key=lambda path: path.stat().st_size))  # 16 of the training rows
        gone[0].unlink()
        return found

    monkeypatch.setattr(experiment, "score", score_and_remove)
    config, console = started(tree, student__seed=1)
    (scored,) = [s for s in run_experiment(config, "distill", console) if s.role == "student"]
    assert re.search(r"student seed 1: logits are missing at step \d; paused", console.file.getvalue())
    assert "the teachers compute them again" in caplog.text
    (new,) = set(blocks(config)) - set(before)
    assert (new.parent, len(blocks(config))) == (gone[0].parent, len(before)), "the same teacher's"
    assert scored.metrics["test"].keys() == stored_run.scored.metrics["test"].keys()
    misses = [logged(config, name).metrics["store/misses"] for name in "ab"]
    assert sorted(misses) == [16, 120], "the other teacher's run is that of the command that computed its logits"


@pytest.mark.long
def test_with_too_few_slots_logits_come_first_and_teachers_take_turns(tree, tmp_path):
    """Four CPUs; a teacher holds three and the student two. The blocks live in an object store."""
    with object_store() as server:
        uri = server.new_uri().replace("s3://", f"s3://{KEY}:{SECRET.replace('+', '%2B')}@")
        changes = {"teachers.*.num_cpus": 3, "student.num_cpus": 2, "output": str(tmp_path), "logits.storage": uri}
        config, console = started(override(tree, {**changes, "logits.cache": str(tmp_path / "cache")}))
        run_experiment(config, "distill", console)
        assert server.count("PUT") == 18
        assert server.count("GET") == 0, "one node: every block was written on it"
    text = console.file.getvalue()
    places = [text.index(p) for p in ("logits of a: 120/120", "logits of b: 120/120", "student seed 0: 0/8")]
    assert places == sorted(places), text
    left = "".join(path.read_text(errors="ignore") for path in (tmp_path / config.name).rglob("*") if path.is_file())
    assert "endpoint_override" in left
    assert SECRET.split("+")[0] not in left + text


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT is Ctrl-C, also where the tests were started in a shell's background, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_precomputing_leaves_no_actors(tree, tmp_path, monkeypatch):
    teachers = made_odd(monkeypatch, tmp_path, "wait")
    config, console = started(tree, output=str(tmp_path / "runs"))

    def at_work() -> set[int]:
        return set().union(*(teacher.pids() for teacher in teachers.values()))

    def interrupt() -> None:
        until(lambda: len(at_work()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, "distill", console)
    thread.join()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in at_work()))
    until(lambda: ray.available_resources().get("CPU") == 4)
    assert list((config.store / "flags").iterdir()) == []
    assert logged(config, f"{config.name} distill").status == "KILLED"
