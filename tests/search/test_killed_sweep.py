"""A sweep whose driver is killed, and one that is paused, go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import LIMIT, until
from tiny import reviews_job


def command(folder: Path, *more: str) -> subprocess.Popen:
    environment = os.environ | {"RAYKD_TEST": "1", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "raykd", "sweep", str(folder / "job.yaml"), *more]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def path_of(folder: Path) -> Path:
    return folder / "runs" / "reviews" / "sweep.jsonl"


def journal(folder: Path) -> dict[str, dict]:
    """The last line of each trial."""
    path = path_of(folder)
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return {f"{e['trial']['arm']} {e['trial']['number']}": e["trial"] for e in lines if "trial" in e}


@pytest.mark.long
def test_a_killed_sweep_and_a_paused_one_resume(tmp_path):
    """SIGKILL, --resume, Ctrl-C, --resume with more seeds: nothing is done twice, MLflow has one run for each."""
    from mlflow import MlflowClient

    tree = reviews_job(tmp_path, search={"trials": 1, "seeds": 1})
    tree["training"] |= {"steps": 60, "eval_every": 20}
    tree["teachers"], tree["method"] = tree["teachers"][:1], "annealing"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))

    first = command(tmp_path)
    until(lambda: sum(t["state"] == "finished" for t in journal(tmp_path).values()) >= 1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    trainings = tmp_path / "runs" / "store" / "trainings"
    before = {path: path.stat().st_mtime_ns for path in trainings.glob("*/result.json")}

    written = len(path_of(tmp_path).read_text().splitlines())
    second = command(tmp_path, "--resume")
    more = path_of(tmp_path).read_text
    until(lambda: second.poll() is not None or '"running"' in "".join(more().splitlines()[written:]))
    second.send_signal(signal.SIGINT)  # other trials, and the best settings' fresh seeds, are still to come
    text, _ = second.communicate(timeout=LIMIT)
    assert second.returncode == 130, text
    assert "with --resume" in text

    third = command(tmp_path, "--resume", "search.seeds=2")
    text, _ = third.communicate(timeout=LIMIT)
    assert third.returncode == 0, text
    for path, changed in before.items():
        assert path.stat().st_mtime_ns == changed, "what was finished is not trained again"
    assert {trial["state"] for trial in journal(tmp_path).values()} == {"finished"}
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("reviews")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = [run.data.tags["mlflow.runName"] for run in runs]
    assert len(names) == len(set(names)), "one run for each, whatever was killed"
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.data.tags["raykd.role"] == "trial":
            points = client.get_metric_history(run.info.run_id, "validation/accuracy")
            assert [point.step for point in points] == [20, 40, 60]
    assert sorted(run.data.params["seed"] for run in runs if run.data.tags["raykd.role"] == "baseline") == [
        "2",
        "3",
    ]  # 1 is the teacher itself
