"""The command as a process: preempted, and started again."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import RestException
from tiny import reviews_job

from raykd import cli
from raykd.cluster.local import kept_sigterm
from raykd.common import sigterm


def raykd(config: Path, *more: str) -> subprocess.Popen:
    """In a process group of its own, as `timeout` and service managers start it."""
    command = [sys.executable, "-m", "raykd", "distill", str(config), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "bufsize": 1}
    return subprocess.Popen(command, start_new_session=True, **pipes)


@pytest.fixture
def handlers() -> Iterator[None]:
    """`main` sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def waiting_in_ray(code: int) -> None:
    """While the main thread is in Ray's C++, Ray replaces the exception of a signal handler by one of its own."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except SystemExit:
        raise SystemExit(code) from None


def starting_ray(code: int) -> None:
    with kept_sigterm():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))  # `ray.init` sets handlers for its own
        signal.raise_signal(signal.SIGTERM)


def losing_it(code: int) -> None:
    """As a library does that catches every error while it is imported, or Python with one in a finalizer."""
    with suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)
    threading.Event().wait(60)
    raise AssertionError("nothing has ended it")


@pytest.mark.parametrize("code", [1, 15])
@pytest.mark.parametrize("at", [waiting_in_ray, starting_ray, losing_it])
def test_sigterm_ends_with_143_wherever_it_arrives(at, code, monkeypatch, capsys, handlers):
    monkeypatch.setattr(sigterm, "AGAIN_SECONDS", 0.01)
    monkeypatch.setitem(cli.OTHERS, "env", lambda given: at(code))
    assert cli.main(["env"]) == 143
    assert capsys.readouterr().err.endswith("stopped\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("teach", "start the same command to resume"),
        ("distill", "start the same command to resume"),
        ("sweep", "start the same command with --resume to resume"),
        ("check", "stopped\n"),
    ],
)
def test_what_trains_can_be_resumed(command, said, tmp_path, monkeypatch, capsys, handlers):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(reviews_job(tmp_path)))
    monkeypatch.setattr(cli, "_run", lambda given, config: signal.raise_signal(signal.SIGINT))
    assert cli.main([command, str(tmp_path / "job.yaml")]) == 130
    assert said in capsys.readouterr().err


def test_of_a_submitted_job_nothing_is_said_but_what_it_does(tmp_path, monkeypatch, capsys, handlers):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(reviews_job(tmp_path)))
    monkeypatch.setattr("raykd.cluster.submit.submit", lambda *given: 130)  # it has said that the job keeps running
    assert cli.main(["submit", "--working-dir", str(tmp_path), "sweep", "job.yaml"]) == 130
    assert capsys.readouterr().err == ""


def test_a_job_outside_of_the_uploaded_folder_is_refused(tmp_path, monkeypatch, capsys, handlers):
    (tmp_path / "uploaded").mkdir()
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(reviews_job(tmp_path)))
    monkeypatch.setattr("raykd.cluster.submit.submit", lambda *given: 0)
    assert cli.main(["submit", "--working-dir", str(tmp_path / "uploaded"), "sweep", "../job.yaml"]) == 2
    assert "CONFIG = ../job.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "override", "code"),
    [
        ("sweep", "search.space.method.alphaa=[0.5]", 2),
        ("sweep", "training.steps=5", 2),  # search.space has epochs
        ("sweep", "training.warmup=0.1", 0),
        ("distill", "training.steps=5", 0),
    ],
)
def test_a_sweep_is_checked_before_its_job_is_uploaded(tmp_path, monkeypatch, handlers, command, override, code):
    uploads = []
    tree = reviews_job(tmp_path, search={"space": {"training.epochs": [1, 2]}})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr("raykd.cluster.submit.submit", lambda *given: uploads.append(given) or 0)
    assert cli.main(["submit", "--working-dir", str(tmp_path), command, "job.yaml", override]) == code
    assert len(uploads) == (code == 0)


def test_the_next_command_is_printed_without_secrets(tmp_path, monkeypatch, capsys, handlers):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(reviews_job(tmp_path)))
    monkeypatch.setattr("raykd.api.run_check", lambda *given: None)
    secrets = ("AKIAABCDEFGHIJKLMNOP", "topsecretpassword", "querysecret")
    address = "s3://{}:{}@bucket/x?secret_key={}".format(*secrets)
    assert cli.main(["check", str(tmp_path / "job.yaml"), f"logits.storage={address}"]) == 0
    shown = capsys.readouterr().out
    assert "raykd distill" in shown
    assert not any(secret in shown for secret in secrets), shown


def test_a_second_sigterm_does_not_interrupt_the_cleanup(monkeypatch, handlers):
    done = []

    def stopped(given: argparse.Namespace) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            try:
                raise ValueError("in the cleanup")
            except ValueError:
                signal.raise_signal(signal.SIGALRM)
            done.append("checkpoint")
        return 0

    monkeypatch.setitem(cli.OTHERS, "env", stopped)
    assert cli.main(["env"]) == 143
    assert done == ["checkpoint"]


def test_an_exit_without_a_signal_keeps_its_code(monkeypatch, handlers):
    monkeypatch.setitem(cli.OTHERS, "env", lambda given: sys.exit(7))
    with pytest.raises(SystemExit) as ended:
        cli.main(["env"])
    assert ended.value.code == 7


def test_an_error_of_mlflow_is_one_line_that_says_how_to_go_on(monkeypatch, capsys, handlers):
    def away(given: argparse.Namespace) -> int:
        raise RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "no answer\nfor 5 minutes"})

    monkeypatch.setitem(cli.OTHERS, "env", away)
    assert cli.main(["env"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "no answer for 5 minutes" in line
    assert "--resume" in line


@pytest.mark.long
def test_preempted_run_is_marked_and_resumes(tmp_path):
    """With SIGTERM to the whole process group, as `timeout` sends it."""
    tree = reviews_job(tmp_path, method="kd", baseline=False)
    tree["training"] = {"steps": 400, "batch_size": 8, "learning_rate": 0.001, "eval_every": 20}
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(tree))
    process = raykd(config)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "validation accuracy" in line:  # there is a checkpoint now
            os.killpg(process.pid, signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 143, said + rest
    assert "Traceback" not in rest
    assert "start the same command to resume" in rest
    stopped = re.findall(r": stopped at step (\d+) of 400 with a checkpoint", rest)
    assert stopped, rest
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("reviews")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} == {"KILLED"}
    reached = [p for p in (tmp_path / "runs" / "store" / "trainings").glob("*/generation-1/checkpoint.pt")]
    assert reached
    process = raykd(config)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    assert all(f"resuming at step {step} of 400" in text for step in stopped), (stopped, text)
    found = json.loads((tmp_path / "runs" / "reviews" / "results.json").read_text())
    assert [r["role"] for r in found["runs"]] == ["teacher", "teacher", "ensemble", "student"]
    # The killed command's part of the loss curve is in the new command's runs, too.
    children = [r for r in client.search_runs([experiment.experiment_id]) if r.info.status == "FINISHED"]
    assert len(children) == 5
    for run in children:
        if run.data.tags["raykd.role"] in ("teacher", "student"):
            steps = [p.step for p in client.get_metric_history(run.info.run_id, "train/loss")]
            assert steps == list(range(1, 401)), run.info.run_name


@pytest.mark.slow
def test_a_second_try_to_start_ray_leaves_nothing_of_the_first():
    """Ray's processes of a start that took too long would keep the machine busy, beside those of the next."""
    script = """
import psutil, ray
from ray._private import services
from raykd.cluster.local import start_local

get_node, calls = services.get_node, []

def late(*arguments):
    calls.append(arguments)
    if len(calls) == 1:
        raise ValueError("timed out")
    return get_node(*arguments)

services.get_node = late
start_local(0)
print(sorted(p.name() for p in psutil.Process().children() if p.name() in ("gcs_server", "raylet")), len(calls) > 1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['gcs_server', 'raylet'] True"], done.stderr


def test_error_if_ray_does_not_start_is_one_line(tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(reviews_job(tmp_path, baseline=False)))
    nowhere = os.environ | {"RAY_TMPDIR": "/dev/null/ray"}
    done = subprocess.run(
        [sys.executable, "-m", "raykd", "distill", str(config)], capture_output=True, text=True, env=nowhere
    )
    assert done.returncode == 1
    assert re.fullmatch(r"raykd: Ray does not start on this machine: .*/dev/null/ray.* ray\.address .*\n", done.stderr)


def test_overrides_can_follow_an_option():
    from raykd.options import parse

    given = parse(["sweep", "job.yaml", "a=1", "--resume", "b=2", "--debug", "c=3"])
    assert (given.config, given.overrides, given.resume) == ("job.yaml", ["a=1", "b=2", "c=3"], True)
    assert parse(["distill", "job.yaml", "--resume"]).resume
    assert not parse(["teach", "job.yaml"]).resume
    for wrong in (["sweep", "job.yaml", "--resmue", "a=1"], ["check", "job.yaml", "--debug", "a"]):
        with pytest.raises(SystemExit):
            parse(wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["distil", "job.yaml"], "Did you mean distill?"),
        (["logits", "verfy", "somewhere"], "Did you mean verify?"),
        (["init", "reviews.csv", "--output", "other.yaml"], "raykd init --help"),
    ],
)
def test_a_misspelt_command_or_option(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_that_has_not_ended_has_no_model(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("name: a\n")
    assert cli.main(["predict", str(tmp_path), "builtin:digits"]) == 2
    assert "no results yet" in capsys.readouterr().err
