"""A sweep that is resumed after what it depends on has changed, and after trials have failed."""

import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient
from rich.console import Console
from tiny import reviews_job

from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.search import sweep, tuner
from raykd.search.trial_process import TrialProcess
from raykd.search.trial_spec import TrialSpec
from raykd.training.events import Evaluated, Event


def until_the_disk_is_full(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if isinstance(event, Evaluated):
            raise OSError(28, "No space left on device")


class Unlucky(TrialProcess):
    """The first training of `kd 1` fails after its first evaluation, for a reason that will have gone away."""

    def _begin(self, spec: TrialSpec) -> None:
        super()._begin(spec)
        marker = Path(spec.training.job.store) / "unlucky"
        if spec.training.job.name == "kd 1" and not marker.exists():
            marker.touch()
            self.events = until_the_disk_is_full(self.events)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def trials(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each."""
    return {f"{e['trial']['arm']} {e['trial']['number']}": e["trial"] for e in entries(path) if "trial" in e}


def runs(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """MLflow's, by role and name."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("reviews").experiment_id
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for run in client.search_runs([experiment], max_results=1000):
        found[run.data.tags["raykd.role"]][run.info.run_name].append(run)
    return found


@pytest.mark.long
def test_failed_and_outdated_trials_are_trained_again(ray_cluster, tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(tuner, "TrialProcess", Unlucky)
    tree = reviews_job(tmp_path, search={"trials": 1, "seeds": 1, "concurrency": 2})
    tree["search"]["space"] = {"method.type": ["kd"]}
    tree["teachers"] = tree["teachers"][:1]
    tree["teachers"][0]["recipe"]["seed"] = 11
    path, trainings = tmp_path / "runs" / "reviews" / "sweep.jsonl", tmp_path / "runs" / "store" / "trainings"

    def run(resume: bool = True) -> str:
        said = Console(file=io.StringIO(), width=200)
        sweep.run(build(tree), said, resume)
        return said.file.getvalue()

    # 1. One trial fails, after an evaluation: its method is not in the table.
    assert "kd: none of its trials has finished" in run(resume=False)
    failed = trials(path)["kd 1"]
    assert (failed["state"], failed["permanent"]) == ("failed", False)
    assert "No space left" in failed["reason"]
    assert not list((trainings / failed["fingerprint"]).glob("generation*")), "a sweep that has ended leaves no files"
    [first] = runs(tmp_path)["trial"]["kd 1"]
    assert first.info.status == "FAILED"

    # 2. It is tried again, and is the same training, so it stays in the same run.
    assert "kd 1 (kd 1: OSError: [Errno 28] No space left on device)" in run()
    assert {name: trial["state"] for name, trial in trials(path).items()} == dict.fromkeys(
        ("finetune 1", "label_smoothing 1", "kd 1"), "finished"
    )
    before = runs(tmp_path)
    [again] = before["trial"]["kd 1"]
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "FINISHED")
    assert (again.data.tags["raykd.state"], "raykd.failure" in again.data.tags) == ("finished", False)
    assert again.data.tags["raykd.fingerprint"] == trials(path)["kd 1"]["fingerprint"]
    assert "superseded" not in before
    assert before["student"]["kd seed 1"]

    # 3. The journal is of a teacher with other weights: what was distilled from it is trained again, in other runs.
    lines = entries(path)
    for entry in lines:
        if "served" in entry:
            entry["served"]["a"]["weights"] = "those before"
        elif "trial" in entry and entry["trial"]["arm"] == "kd":
            entry["trial"] |= {"fingerprint": "f0", "score": 0.0 if entry["trial"]["score"] is None else 7.0}
        elif entry.get("run", "").startswith("kd 1#"):
            entry["run"] = "kd 1#f0"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    text = run()
    [line] = [line for line in text.splitlines() if "teachers.a" in line]
    assert "weights" in line
    assert line.endswith(": kd 1")
    assert trials(path)["kd 1"]["score"] <= 1
    after = runs(tmp_path)
    assert {name: len(found) for name, found in after["superseded"].items()} == {"kd 1": 1, "a": 1, "ensemble": 1}
    for role, name in (("trial", "kd 1"), ("teacher", "a"), ("ensemble", "ensemble")):
        [old], [new] = before[role][name], after[role][name]
        assert old.info.run_id != new.info.run_id
        assert old.info.run_id == after["superseded"][name][0].info.run_id
        shared = [key for key in old.data.metrics if key.startswith("final_")]
        assert {key: new.data.metrics[key] for key in shared} == {key: old.data.metrics[key] for key in shared}
    assert before["trial"]["finetune 1"][0].info.run_id == after["trial"]["finetune 1"][0].info.run_id
    assert {run.info.status for role in after.values() for found in role.values() for run in found} == {"FINISHED"}

    # 4. The labels are inverted in place: nothing is trained, and nothing is mixed.
    table = pq.read_table(tmp_path / "data" / "train.parquet")
    inverted = [1 - label for label in table["label"].to_pylist()]
    pq.write_table(pa.table({"text": table["text"], "label": inverted}), tmp_path / "data" / "train.parquet")
    kept = path.read_text()
    with pytest.raises(ConfigError) as refused:
        run()
    assert (refused.value.key, refused.value.value) == ("data.train", "train[:60]")
    assert "data.validation" in refused.value.reason
    assert path.read_text() == kept
    assert len(runs(tmp_path)["experiment"]["reviews sweep"]) == 1
