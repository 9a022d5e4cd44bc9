"""`ray job submit` and `raykd submit` against a real head: what is uploaded, the log, the exit codes, a stopped job."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient
from processes import LIMIT, until
from ray_head import BIN, Head, ray_head
from tiny import reviews_job

pytestmark = pytest.mark.cluster
TOKEN = "a" * 64
PAGES = Path(__file__).parents[2] / ".docs" / "pages"


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A head that wants a token, and a folder of jobs. The head's raykd keeps its runs in `home`."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(TOKEN)
    secured = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    kept = {"RAYKD_HOME": str(folder / "home"), "RAY_JOB_STOP_WAIT_TIME_S": "60"}  # as the files in cluster/ set them
    with ray_head(folder, secured | kept) as head:
        yield SimpleNamespace(**vars(head), home=folder / "home")


@pytest.fixture
def work(tmp_path, migrated_store) -> Path:
    """A working folder with a job, and with what must not be uploaded: Ray refuses a package of 100 MiB."""
    tree = reviews_job(tmp_path, search={"trials": 1, "seeds": 1})
    tree["teachers"] = tree["teachers"][:1]
    tree["output"] = "out"  # relative, as in every YAML of jobs/
    work = tmp_path / "work"
    (work / "jobs").mkdir(parents=True)
    (work / "jobs" / "job.yaml").write_text(yaml.safe_dump(tree))
    for heavy in ("runs/store/block", "out/store/block", ".venv/lib/torch.so"):
        (work / heavy).parent.mkdir(parents=True)
        with (work / heavy).open("wb") as file:
            file.truncate(300 * 2**20)
    return work


def submit(head: Head, work: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    call = [str(BIN / "raykd"), "submit", "--address", head.address, *command]
    return subprocess.run(
        call, cwd=work, env=head.environment | environment, text=True, capture_output=True, timeout=LIMIT
    )


def test_a_job_runs_to_its_end(head, work):
    (head.home / "out").mkdir(parents=True)
    own = PAGES.joinpath("methods.md").read_text().split("## Your own weighting or divergence")[1]
    (work / "my_methods.py").write_text(own.split("```python\n")[1].split("```")[0])  # only in the working folder
    done = submit(head, work, "distill", "jobs/job.yaml", "student.seed=3", "method.divergence=my_methods:squared")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^student: +10/10|^student.*10/10", done.stdout, re.MULTILINE), done.stdout
    assert not re.search(r"[\x1b\r]", done.stdout), "plain lines"
    results = json.loads((head.home / "out" / "reviews" / "results.json").read_text())
    assert {run["role"] for run in results["runs"]} == {"teacher", "ensemble", "baseline", "student"}
    assert results["mlflow"]["uri"] == f"sqlite:///{head.home}/out/mlflow.db"
    assert not (work / "out" / "reviews").exists()


def test_what_goes_wrong_is_the_exit_code(head, work, tmp_path):
    for command, code, says in (
        (["teach", "jobs/job.yaml", "data.source=/nowhere"], 2, "data.source"),
        (["distill", "jobs/job.yaml", "training.learning_rate=1e30", "training.max_grad_norm=1e30"], 1, "loss is nan"),
        (["distill", "jobs/job.yaml", "method.T=2"], 2, "method.T"),
        (["distill", "/etc/hosts"], 2, "CONFIG"),
        (["report", "runs/reviews"], 2, "COMMAND"),
    ):
        done = submit(head, work, *command)
        assert done.returncode == code, done.stdout + done.stderr
        assert says in done.stdout + done.stderr
    with_ray = ["job", "submit", "--address", head.address, "--working-dir", ".", "--"]
    with_ray += ["python", "-m", "raykd", "teach", "jobs/job.yaml", "data.source=/nowhere"]
    shutil.rmtree(work / "out")  # Ray's own command knows of .gitignore only
    shutil.rmtree(work / "runs")
    done = subprocess.run([BIN / "ray", *with_ray], cwd=work, env=head.environment, timeout=LIMIT, capture_output=True)
    assert done.returncode == 1


def test_the_token_is_asked_for(head, work, tmp_path):
    (tmp_path / "other").write_text("b" * 64)
    for environment in ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}, {"RAY_AUTH_MODE": "disabled"}):
        refused = submit(head, work, "check", "jobs/job.yaml", **environment)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert "RAY_AUTH_MODE=token" in refused.stderr
        assert TOKEN not in refused.stdout + refused.stderr


def test_a_cluster_is_joined_only_by_its_address_and_its_token(head, work, tmp_path):
    """Without an address, a local Ray beside it; with one but another token, one line that names the token."""
    program = "import ray; from raykd.cluster.local import start_local; start_local(0); "  # Ray first, as in a notebook
    program += "print(ray.get_runtime_context().gcs_address)"
    unset = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_MODE"}
    alone = subprocess.run([sys.executable, "-c", program], env=unset, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.strip().rpartition(":")[2] != head.gcs.rpartition(":")[2]

    (tmp_path / "other").write_text("b" * 64)
    command = [sys.executable, "-m", "raykd", "check", "jobs/job.yaml", f"ray.address={head.gcs}"]
    given = head.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    refused = subprocess.run(command, cwd=work, env=given, capture_output=True, text=True)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert f"raykd: ray.address = {head.gcs}: " in refused.stderr
    assert "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_head_that_finds_a_token_requires_it(tmp_path, work):
    """A plain `ray start --head` where Ray has run before: `ray job submit` fails there, `raykd submit` does not."""
    (tmp_path / "token").write_text(TOKEN)
    with ray_head(tmp_path, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAYKD_HOME": str(tmp_path)}) as head:
        done = submit(head, work, "check", "jobs/job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_head_without_a_token(tmp_path, work):
    """If the user has turned it off, raykd does not require a token."""
    with ray_head(tmp_path, {"RAY_AUTH_MODE": "disabled", "RAYKD_HOME": str(tmp_path)}) as head:
        done = submit(head, work, "check", "jobs/job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is valid" in done.stdout


def journal(head: Head) -> list[dict]:
    path = head.home / "out" / "stopped" / "sweep.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["trial"] for line in lines if line.startswith('{"trial"') and line.endswith("}")]


def test_a_stopped_job_is_told_from_a_finished_one_and_goes_on(head, work):
    """By `ray job submit`, whose command returns 0 for it."""
    shutil.rmtree(work / "out")
    shutil.rmtree(work / "runs")
    names = {trial["arm"] for trial in journal(head)}
    assert not names
    # One after another, and long enough that most are still to come when `ray job stop` has started.
    job = ["sweep", "jobs/job.yaml", "name=stopped", "training.steps=400", "search.concurrency=1"]
    command = ["python", "-m", "raykd", *job]
    with_ray = [str(BIN / "ray"), "job", "submit", "--address", head.address, "--submission-id", "first"]
    first = subprocess.Popen(
        [*with_ray, "--working-dir", ".", "--", *command],
        cwd=work,
        env=head.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until(lambda: first.poll() is not None or any(trial["state"] == "finished" for trial in journal(head)))
    stop = [str(BIN / "ray"), "job", "stop", "--address", head.address, "first"]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True, timeout=LIMIT)
    text, _ = first.communicate(timeout=LIMIT)
    assert first.returncode == 0, text
    finished = {t["arm"]: t["number"] for t in journal(head) if t["state"] == "finished"}

    client = MlflowClient(f"sqlite:///{head.home}/out/mlflow.db")
    experiment = client.get_experiment_by_name("stopped").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    parent = next(run for run in runs if run.data.tags["raykd.role"] == "experiment")
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in runs} <= {"KILLED", "FINISHED"}

    again = submit(head, work, *job, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert finished.items() <= {t["arm"]: t["number"] for t in journal(head) if t["state"] == "finished"}.items()
    after = client.search_runs([experiment], max_results=1000)
    assert {run.info.run_id for run in runs} <= {run.info.run_id for run in after}
    names = [run.data.tags["mlflow.runName"] for run in after]
    assert len(names) == len(set(names)), "one run for each"
    assert {run.info.status for run in after} == {"FINISHED"}


def test_raykds_own_command_tells_of_a_stopped_job(head, work):
    call = [str(BIN / "raykd"), "submit", "--address", head.address, "distill", "jobs/job.yaml", "training.steps=20000"]
    following = subprocess.Popen(
        call, cwd=work, env=head.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert following.stdout is not None
    assert following.stderr is not None
    first = following.stdout.readline()
    job = re.match(r"submitted as (\S+) ", first)
    assert job
    said = [first]
    while "validation accuracy" not in said[-1]:
        said.append(following.stdout.readline())
        assert said[-1], "".join(said) + following.stderr.read()
    stop = [str(BIN / "ray"), "job", "stop", "--address", head.address, "--no-wait", job[1]]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True, timeout=LIMIT)
    text, errors = following.stdout.read(), following.stderr.read()
    assert following.wait(LIMIT) == 143, text + errors
    assert "was stopped; start the command again" in errors
    assert "with a checkpoint" in text
