"""The MLflow server of compose.yaml (and of kubernetes/mlflow.yaml, which has the same command), started for real.

PostgreSQL and the S3 store are others than the file's: Debian's, and moto's.
"""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from postgres import postgres
from processes import free_ports

from raykd.tracking.experiment import Tracking

COMPOSE = Path(__file__).parents[2] / "cluster" / "compose.yaml"
DATABASE = "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
LIMIT = 300
SECRETS = {
    "POSTGRES_PASSWORD": "one-secret",
    "S3_ACCESS_KEY": "two-secret",
    "S3_SECRET_KEY": "three-secret",
    "MLFLOW_ADMIN_PASSWORD": "four-secret-long",
    "MLFLOW_SECRET_KEY": "five-secret",
}

pytestmark = pytest.mark.cluster


@pytest.fixture
def running(tmp_path) -> Iterator[SimpleNamespace]:
    """The server: address, log, and an S3 client for its store."""
    compose = yaml.safe_load(COMPOSE.read_text())
    (port,) = free_ports(1)
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    try:
        endpoint = "http://{}:{}".format(*store.get_host_and_port())
        with postgres() as database:
            ini = tmp_path / "basic_auth.ini"
            ini.write_text(compose["configs"]["basic_auth"]["content"].replace(DATABASE, database))
            service = compose["services"]["mlflow"]
            own = {"AWS_ENDPOINT_URL": endpoint, "MLFLOW_AUTH_CONFIG_PATH": str(ini)}
            own |= {"MLFLOW_HOSTS": f"localhost:{port},127.0.0.1:{port}"}
            own |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            given = {name: filled_in(value) for name, value in service["environment"].items()} | own
            command = [part.replace("$$", "$").replace(DATABASE, database) for part in service["command"]]
            command[2] = command[2].replace("--port 5000", f"--port {port}")
            log = tmp_path / "server.log"
            with log.open("w") as output:
                process = subprocess.Popen(
                    command, env=given, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True
                )
            try:
                address = f"http://127.0.0.1:{port}"
                limit = time.monotonic() + LIMIT
                while status(f"{address}/health") != 200:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < limit
                    time.sleep(0.2)
                s3 = boto3.client(
                    "s3", "us-east-1", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s"
                )
                yield SimpleNamespace(address=address, log=log, s3=s3)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait(LIMIT)
    finally:
        store.stop()


def filled_in(value: str) -> str:
    """As compose does it: ${NAME:?message} from the .env file, ${NAME:-default} where it says nothing."""
    return re.sub(r"\$\{(\w+):[?-](.*?)\}", lambda found: SECRETS.get(found[1], found[2]), value)


def status(address: str) -> int | None:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_it_serves_those_it_knows(running, tmp_path, monkeypatch):
    experiments = f"{running.address}/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(experiments) == 401
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["MLFLOW_ADMIN_PASSWORD"])
    from mlflow.server import get_app_client

    get_app_client("basic-auth", tracking_uri=running.address).create_user("raykd", "six-secret-long")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "raykd")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "six-secret-long")
    run = Tracking(running.address, "one").start("a run", params={"alpha": 1}, tags={})
    (tmp_path / "results.json").write_text("{}")
    run.artifact(tmp_path / "results.json")
    found = [item["Key"] for item in running.s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert [key.rpartition("/")[2] for key in found] == ["results.json"], "through the server, into the bucket"
    said = running.log.read_text()
    assert not [name for name, secret in SECRETS.items() if secret in said]
