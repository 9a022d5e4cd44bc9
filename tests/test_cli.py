"""The command as a process: preempted, and started again."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from tiny import reviews_job


def raykd(config: Path, *more: str) -> subprocess.Popen:
    """In a process group of its own, as `timeout` and service managers start it."""
    command = [sys.executable, "-m", "raykd", "distill", str(config), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "bufsize": 1}
    return subprocess.Popen(command, start_new_session=True, **pipes)


@pytest.mark.slow
@pytest.mark.xfail(strict=False, reason="on a busy machine it has ended with 1 instead of 143: an open fault")
def test_preempted_run_is_marked_and_resumes(tmp_path):
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
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 143, said + rest
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
    text = process.communicate(timeout=300)[0]
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
