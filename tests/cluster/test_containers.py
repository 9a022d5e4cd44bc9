"""compose.yaml against the compose specification's schema; the Containerfile, parsed; and what both promise.

Where there is a container engine, `docker compose -f cluster/compose.yaml config` says more than the schema does.
"""

import fnmatch
import io
import os
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
import pytest
import yaml
from dockerfile_parse import DockerfileParser

TOP = Path(__file__).parents[2]
COMPOSE = TOP / "cluster" / "compose.yaml"
MANIFEST = TOP / "cluster" / "kubernetes" / "mlflow.yaml"


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def test_compose_takes_it(tmp_path):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, str(COMPOSE)], check=True)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("depends_on:", "depends:"))
    assert subprocess.run([*check, str(wrong)], capture_output=True).returncode == 1


def test_services_are_confined(services):
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["user"].partition(":")[0]) > 0
        assert service["healthcheck"]["test"][0] == "CMD"
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"]}, "on this machine alone"
    compose = yaml.safe_load(COMPOSE.read_text())
    assert compose["networks"]["store"] == {"internal": True}
    assert services["postgres"]["networks"] == services["object-store"]["networks"] == ["store"]
    assert set(services["mlflow"]["depends_on"]) == {"postgres", "object-store"}
    assert ".env" in (TOP / ".gitignore").read_text().split(), "neither committed nor sent along with jobs"


def test_the_env_file_of_the_header_is_all_it_needs():
    text = COMPOSE.read_text()
    made = set(text.partition("for name in ")[2].partition(";")[0].split())
    wanted = {part.partition(":?")[0] for part in text.split("${")[1:] if ":?" in part.partition("}")[0]}
    assert made == wanted


def mlflow_scripts() -> dict[str, str]:
    """What the shell is given to run, in both files."""
    composed = yaml.safe_load(COMPOSE.read_text())["services"]["mlflow"]["command"]
    (deployment,) = [d for d in yaml.safe_load_all(MANIFEST.read_text()) if d["kind"] == "Deployment"]
    applied = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert composed[:2] == applied[:2] == ["sh", "-c"]
    return {"compose": composed[2].replace("$$", "$"), "kubernetes": applied[2]}


def test_mlflow_takes_its_options():
    from mlflow.cli import server  # here: every process of the tests reads every file, and this takes six seconds

    scripts = mlflow_scripts()
    assert scripts["compose"] == scripts["kubernetes"]
    words = shlex.split(scripts["compose"])
    given = server.make_context("mlflow server", words[words.index("server") + 1 :]).params
    assert given["app_name"] == "basic-auth"
    assert (
        given["backend_store_uri"] == "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    )  # the password is in PGPASSWORD
    assert given["artifacts_destination"] == "s3://mlflow"
    assert given["serve_artifacts"]
    assert given["allowed_hosts"] == "$MLFLOW_HOSTS"


def test_the_bucket_is_made_once(monkeypatch):
    from moto.server import ThreadedMotoServer

    words = shlex.split(mlflow_scripts()["compose"])
    script = words[words.index("-c") + 1]
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        own = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (own | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}).items():
            monkeypatch.setenv(name, value)
        # All of moto's servers in a process have the same buckets: those of tests before are not to be here.
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        for _ in range(2):
            subprocess.run([sys.executable, "-c", script], check=True)
        assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["mlflow"]
    finally:
        store.stop()


@pytest.fixture(scope="module")
def stages() -> dict[str, list[dict]]:
    """The Containerfile's instructions by stage; a stage begins with those of the one it stands on."""
    parser = DockerfileParser(fileobj=io.BytesIO((TOP / "cluster" / "Containerfile").read_bytes()))
    found: dict[str, list[dict]] = {}
    for line in parser.structure:
        if line["instruction"] == "FROM":
            image, _, name = line["value"].partition(" AS ")
            found[name] = [*found.get(image, [line])]
        elif line["instruction"] != "COMMENT":
            found[name].append(line)
    return found


def test_images(stages):
    assert list(stages) == ["base", "mlflow", "raykd"], "the last one is what is built by default"
    for name in ("mlflow", "raykd"):
        (base,) = [line["value"] for line in stages[name] if line["instruction"] == "FROM"]
        assert base.startswith("python:3.11-slim")
        users = [line["value"] for line in stages[name] if line["instruction"] == "USER"]
        assert users == ["1000"]
        assert stages[name].index(next(line for line in stages[name] if line["instruction"] == "USER")) > max(
            i for i, line in enumerate(stages[name]) if line["instruction"] in ("RUN", "COPY")
        ), "what is installed belongs to root"
        installs = [line["value"] for line in stages[name] if "pip install" in line["value"]]
        assert installs
        assert all("-c /src/constraints.txt" in i or "--no-deps" in i for i in installs)
    assert any(line["instruction"] == "ARG" and "TORCH_INDEX=" in line["value"] for line in stages["raykd"])
    assert "'mlflow[auth]' psycopg2-binary boto3" in " ".join(line["value"] for line in stages["mlflow"])


def test_images_get_what_they_copy_and_no_more(stages):
    rules = (TOP / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source for line in stages["raykd"] if line["instruction"] == "COPY" for source in line["value"].split()[:-1]
    }
    assert {source.partition("/")[0] for source in copied} == admitted
    assert all((TOP / source).exists() for source in copied)
    assert any(fnmatch.fnmatch(os.path.join("raykd", "__pycache__"), rule) for rule in rules[1:])
