"""Sweeps of eight trials at a time against a real MLflow server that asks for a password and goes away for 30 s."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow_server import Server
from postgres import postgres
from processes import LIMIT, until
from tiny import reviews_job

pytestmark = pytest.mark.cluster
USER, PASSWORD = "keeper", "correct-horse-battery"
AWAY = 30.0  # seconds
STEPS, EVERY = 200, 20


@pytest.fixture
def store() -> Iterator[str]:
    """SQLAlchemy's address of the server's store. test_tracking.py has a server on sqlite."""
    with postgres() as address:
        yield address


@contextmanager
def secured_server(store: str, folder: Path) -> Iterator[Server]:
    folder.mkdir()
    (folder / "users.ini").write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/users.db\nadmin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # as in cluster/
    )
    server = Server(store, folder, folder / "users.ini")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def command(folder: Path, address: str, **environment: str) -> Iterator[subprocess.Popen]:
    given = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": address, **environment}
    call = [sys.executable, "-m", "raykd", "sweep", str(folder / "job.yaml")]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=given)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def trials(folder: Path) -> dict[str, str]:
    """Their states, by name."""
    path = folder / "runs" / "reviews" / "sweep.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line)["trial"] for line in lines if line.startswith('{"trial"') and line.endswith("}")]
    return {f"{trial['arm']} {trial['number']}": trial["state"] for trial in found}


def test_nothing_is_lost_and_nothing_is_told(store, tmp_path, monkeypatch):
    """Every trial's every point once, also those of the time without a server; the password nowhere."""
    space = {"method.type": ["kd"], "training.learning_rate": {"log_uniform": [0.001, 0.01]}}
    tree = reviews_job(tmp_path, search={"trials": 4, "seeds": 1, "space": space})
    tree["teachers"] = tree["teachers"][:1]
    tree["teachers"][0]["recipe"] |= {"training": {"steps": 20}}
    tree["training"] |= {"steps": STEPS, "eval_every": EVERY}
    tree["student"] |= {"num_cpus": os.cpu_count() / 8}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    secret = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}

    with secured_server(store, tmp_path / "server") as server:
        wrong = secret | {"MLFLOW_TRACKING_PASSWORD": "wrong-one"}
        with command(tmp_path, server.address, **wrong) as refused:
            text, _ = refused.communicate(timeout=LIMIT)
        assert refused.returncode == 2, text
        assert "MLFLOW_TRACKING_PASSWORD" in text
        assert "wrong-one" not in text

        with command(tmp_path, server.address, **secret) as sweep:
            until(lambda: sweep.poll() is not None or list(trials(tmp_path).values()).count("running") >= 8)
            until(lambda: sweep.poll() is not None or "finished" in trials(tmp_path).values())
            assert sweep.poll() is None, sweep.communicate()
            server.stop()
            time.sleep(AWAY)
            server.start()
            text, _ = sweep.communicate(timeout=2 * LIMIT)
        assert sweep.returncode == 0, text
        assert " lost " not in text

        for name, value in secret.items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(server.address)
        experiment = client.get_experiment_by_name("reviews").experiment_id
        runs = client.search_runs([experiment], max_results=1000)
        assert {run.info.status for run in runs} == {"FINISHED"}, text
        names = [run.data.tags["mlflow.runName"] for run in runs]
        assert len(names) == len(set(names)), "one run for each"
        of_trials = [run for run in runs if run.data.tags["raykd.role"] == "trial"]
        assert sorted(run.data.tags["mlflow.runName"] for run in of_trials) == sorted(trials(tmp_path))
        for run in of_trials:
            points = client.get_metric_history(run.info.run_id, "validation/accuracy")
            assert [point.step for point in points] == list(range(EVERY, STEPS + 1, EVERY))
            artifacts = [file.path for file in client.list_artifacts(run.info.run_id)]
            assert "predictions-validation.jsonl.gz" in artifacts
        assert client.get_model_version_by_alias("reviews", "best")
        said = [text, json.dumps([run.to_dictionary() for run in runs], default=str)]

    left = [
        path for folder in ("runs", "server/artifacts") for path in (tmp_path / folder).rglob("*") if path.is_file()
    ]
    assert {"config.yaml", "results.json", "report.html", "sweep.jsonl"} <= {path.name for path in left}
    said += [path.read_bytes().decode(errors="replace") for path in left]
    for secret_text in (PASSWORD, f"{USER}:"):
        assert not any(secret_text in one for one in said)
