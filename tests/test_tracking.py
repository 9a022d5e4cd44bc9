"""MLflow as it is: real stores on sqlite, a real server on loopback."""

import json
import math
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
import torch
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils
from mlflow_server import Server, mlflow_server
from processes import until
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from raykd.common.errors import ConfigError, TrainingError
from raykd.common.redaction import scrub
from raykd.tracking import patience
from raykd.tracking.experiment import Tracking
from raykd.tracking.mlflow_store import one_line, tracking_uri
from raykd.tracking.moved import is_elsewhere, local_artifacts
from raykd.tracking.patience import Patient
from raykd.tracking.run import Run


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables: creating one takes 2 s, copying it nothing."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    Tracking(f"sqlite:///{file}", "template")
    return file


@pytest.fixture
def tracking(migrated: Path, tmp_path: Path) -> Tracking:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return Tracking(tracking_uri(None, tmp_path), "digits")


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def history(tracking: Tracking, run: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracking.client.get_metric_history(run.id, key)]


def same_outputs(one: Path, other: Path) -> bool:
    ids = torch.tensor([[1, 2, 3, 4]])
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in (one, other)]
    with torch.no_grad():
        return torch.equal(*(model(ids).logits for model in models))


# --- where MLflow is -------------------------------------------------------------------------------------


def test_uri_comes_from_config_then_environment_then_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, Path("out")) == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert tracking_uri("", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org/team/ ")
    assert tracking_uri(None, tmp_path) == "https://mlflow.example.org/team"
    assert tracking_uri("http://127.0.0.1:5000", tmp_path) == "http://127.0.0.1:5000"
    assert tracking_uri("sqlite:////data/a@b/mlflow.db", tmp_path) == "sqlite:////data/a@b/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "reason", "hint"),
    [
        ("sqlite:///mlflow.db", "relative", "sqlite:////out/mlflow.db"),
        ("sqlite:///./runs/mlflow.db", "relative", "sqlite:////out/mlflow.db"),
        ("sqlite://", "relative", "sqlite:////out/mlflow.db"),
        ("file:///tmp/mlruns", "plain folders", "sqlite:////out/mlflow.db"),
        ("file:./mlruns", "plain folders", "sqlite:////out/mlflow.db"),
        ("/tmp/mlruns", "plain folders", "http://HOST:PORT"),
        ("./mlruns", "plain folders", "http://HOST:PORT"),
        ("postgresql://db.example.org/mlflow", "only a sqlite file or", "start a server on it"),
        ("localhost:5000", "only a sqlite file or", "http://HOST:PORT"),
        ("http://", "not an address", "http://HOST:PORT"),
        ("http://host:port", "not an address", "http://HOST:PORT"),
        ("http:/host:5000", "not an address", "http://HOST:PORT"),
    ],
)
def test_uri_that_cannot_work(uri: str, reason: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tracking_uri(uri, Path("/out"))
    error = caught.value
    assert (error.key, error.value) == ("tracking.uri", uri)
    assert reason in error.reason
    assert hint in error.hint
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "uri",
    [
        "http://anna:hunter2@host:5000",
        "https://hunter2@host",
        "https://anna:hun/ter2@host",  # urllib sees no password here
        "https://anna:hun#ter2@host",
        "http://host:5000/?token=hunter2",
        "postgresql://anna:hunter2@db/mlflow",
        "anna:hunter2@host:5000",
    ],
)
def test_uri_with_credentials_is_refused_and_never_repeated(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as caught:
        tracking_uri(None, Path("/out"))
    assert caught.value.key == "MLFLOW_TRACKING_URI"
    assert not any(secret in repr(caught.value) + str(caught.value) for secret in ("hun", "ter2", "anna"))
    if uri.startswith("http"):
        assert "MLFLOW_TRACKING_PASSWORD" in caught.value.hint


def test_check_does_not_import_mlflow() -> None:
    code = "import sys; from pathlib import Path; from raykd.tracking.mlflow_store import tracking_uri as uri; "
    code += "uri(None, Path('out')); assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_store_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and long enough for its header to be looked at" * 3)
    (tmp_path / "file").touch()
    started = time.monotonic()
    for path in (tmp_path / "mlflow.db", tmp_path / "file" / "mlflow.db", tmp_path):
        with pytest.raises(ConfigError, match=r"tracking.uri = sqlite:.*cannot be opened"):
            Tracking(f"sqlite:///{path}", "digits")
    with pytest.raises(ConfigError, match="no answer"):
        Tracking("http://127.0.0.1:9", "digits")
    assert time.monotonic() - started < 5


def test_port_of_another_protocol_is_one_line() -> None:
    """As where the port of a database or of Ray is given instead of the MLflow server's."""

    def answer() -> None:
        connection, _ = other.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"-ERR unknown command\r\n")

    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError, match="tracking.uri = http://127.*no answer over HTTP"):
            Tracking(f"http://127.0.0.1:{other.getsockname()[1]}", "digits")
        thread.join()


def test_drivers_that_start_together_share_one_new_store(tmp_path: Path) -> None:
    output = tmp_path / "50% a?b"  # what a URI would take for an escape and for options
    code = "import sys; from pathlib import Path; from raykd.tracking.experiment import Tracking; "
    code += "from raykd.tracking.mlflow_store import tracking_uri; "
    code += "t = Tracking(tracking_uri(None, Path(sys.argv[1])), 'digits'); "
    code += "t.start('r', params={}, tags={}).finish()"
    command = [sys.executable, "-c", code, str(output)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    lines = [line for error in errors for line in error.splitlines()]
    assert all("mlflow.db.lock" in line for line in lines), "none of MLflow's own lines, only whom one waited for"
    tracking = Tracking(tracking_uri(None, output), "digits")
    assert len(tracking.client.search_runs([tracking.experiment_id])) == 2
    assert {path.name for path in output.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_deleted_experiment(tracking: Tracking) -> None:
    tracking.client.delete_experiment(tracking.experiment_id)
    with pytest.raises(ConfigError, match=r"tracking.experiment = digits: deleted in MLflow"):
        Tracking(tracking.uri, "digits")


# --- a run -----------------------------------------------------------------------------------------------


def test_parent_and_children_with_params_metrics_inputs_and_artifacts(tracking: Tracking, tmp_path: Path) -> None:
    names = {"raykd.role": "experiment"}
    with tracking.start("digits", params={}, tags=names) as parent:
        for seed in (1, 2):
            params = {"method.W": 0.75, "student.seed": seed, "data/train?": "x" * 7000}
            params |= {f"many.{i}": i for i in range(250)}
            with tracking.start(f"student {seed}", params=params, tags={"raykd.role": "student"}, parent=parent) as run:
                for step in range(300):
                    run.log({"train/loss": 1 / (1 + step), "train/alpha": 0.5}, step)
                run.log({"validation/accuracy": 0.9}, 299)
                columns = {"image": "binary", "label": "long"}
                run.dataset("digits", "ab" * 32, "/data/digits", split="train", rows=300, columns=columns)
                run.dataset("digits", "cd" * 16, "sst2", split="test", rows=700, kind="hugging_face")
                run.set_tags({"raykd.best_step": "299"})
                run.artifact_json({"a": [1, "ä"]}, "results/table.json")
                (tmp_path / "config.yaml").write_text("a: 1")
                run.artifact(tmp_path / "config.yaml")
                (tmp_path / "figures").mkdir(exist_ok=True)
                (tmp_path / "figures" / "w.svg").write_text("<svg/>")
                run.artifact(tmp_path / "figures", "figures")
    children = tracking.client.search_runs(
        [tracking.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.id}'",
        order_by=["params.`student.seed`"],
    )
    assert [child.info.run_name for child in children] == ["student 1", "student 2"]
    child = children[0]
    assert child.info.status == "FINISHED"
    assert child.info.end_time >= child.info.start_time
    assert tracking.client.get_run(parent.id).data.tags["raykd.role"] == "experiment"
    assert child.data.tags["raykd.best_step"] == "299"
    assert len(child.data.params) == 253
    assert child.data.params["method.W"] == "0.75"
    assert 5900 < len(child.data.params["data/train_"]) <= 6000
    assert "7000 characters" in child.data.params["data/train_"]
    points = tracking.client.get_metric_history(child.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(step, 1 / (1 + step)) for step in range(300)]
    assert child.data.metrics["validation/accuracy"] == 0.9
    train, test = sorted(child.inputs.dataset_inputs, key=lambda item: item.dataset.digest)
    assert (train.dataset.name, train.dataset.digest) == ("digits", "ab" * 18)
    assert json.loads(train.dataset.profile) == {"num_rows": 300}
    assert json.loads(train.dataset.schema)["mlflow_colspec"][1] == {"name": "label", "type": "long"}
    assert json.loads(train.dataset.source) == {"uri": "/data/digits"}
    assert [(tag.key, tag.value) for tag in train.tags] == [("mlflow.data.context", "train")]
    assert mlflow.data.get_source(test.dataset).path == "sst2"
    folder = Path(tracking.client.download_artifacts(child.info.run_id, "", str(tmp_path)))
    assert json.loads((folder / "results/table.json").read_text()) == {"a": [1, "ä"]}
    assert (folder / "config.yaml").read_text() == "a: 1"
    assert (folder / "figures/w.svg").exists()
    assert (tmp_path / "mlartifacts" / child.info.run_id / "artifacts" / "config.yaml").exists()


def test_metrics_arrive_while_the_run_goes_on(tracking: Tracking) -> None:
    with tracking.start("r", params={}, tags={}) as run:
        run.log({"loss": 1.0}, 1)
        assert history(tracking, run, "loss") == []  # logging itself does not wait for MLflow
        deadline = time.monotonic() + 10
        while not history(tracking, run, "loss"):  # no second call of log is needed
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_metric_names(tracking: Tracking) -> None:
    with tracking.start("r", params={}, tags={}) as run:
        run.log({"loss": 1.0, "loss/train": 2.0, "val/a": 3.0, "val": 4.0, "vala": 5.0}, 1)
        run.log({"loss": 1.5, "loss/train": 2.5, "/a//b?": 6.0, "a/b!": 7.0, "../x": 8.0, "": 9.0}, 2)
    found = tracking.client.get_run(run.id).data.metrics
    assert found == {
        "loss": 1.5, "loss.train": 2.5, "val/a": 3.0, "val_": 4.0, "vala": 5.0,
        "a/b_": 6.0, "a.b_": 7.0, "x": 8.0, "_": 9.0,
    }  # fmt: skip
    assert not any(a != b and f"{a}/".startswith(f"{b}/") for a in found for b in found)
    assert history(tracking, run, "loss.train") == [(1, 2.0), (2, 2.5)]


def test_value_that_is_not_finite(tracking: Tracking, caplog: pytest.LogCaptureFixture) -> None:
    with tracking.start("r", params={}, tags={}) as run:
        for step, value in enumerate([1.0, math.inf, math.nan, -math.inf, 2.0]):
            run.log({"loss": value}, step)
    values = [value for _, value in history(tracking, run, "loss")]
    assert [math.isnan(value) for value in values] == [False, True, True, True, False]
    assert [record.message for record in caplog.records] == ["loss = inf at step 1: logged as NaN"]


def test_replayed_steps_are_not_logged_twice(tracking: Tracking) -> None:
    with pytest.raises(RuntimeError), tracking.start("r", params={}, tags={}) as run:  # noqa: PT012
        for step in (10, 20, 30):
            run.log({"train/loss": step, "train": 0.0}, step)
        run.log({"validation/accuracy": 0.8}, 20)
        raise RuntimeError("node lost")
    assert "raykd.failure" in tracking.client.get_run(run.id).data.tags
    again = Tracking(tracking.uri, "digits").resume(run.id)
    found = tracking.client.get_run(run.id)
    assert found.info.status == "RUNNING"
    assert "raykd.failure" not in found.data.tags
    for step in (20, 30, 40):  # from the checkpoint at step 10
        again.log({"train/loss": step + 0.5, "train": 1.0}, step)
        again.log({"validation/accuracy": 0.9}, step)
    again.log({"train/loss": 99.0}, 40)
    again.finish()
    again.finish("FAILED", "too late")
    assert history(tracking, run, "train/loss") == [(10, 10), (20, 20), (30, 30), (40, 40.5)]
    assert history(tracking, run, "train_") == [(10, 0), (20, 0), (30, 0), (40, 1)]
    assert history(tracking, run, "validation/accuracy") == [(20, 0.8), (30, 0.9), (40, 0.9)]
    assert tracking.client.get_run(run.id).info.status == "FINISHED"


class RayLikeError(Exception):
    """Ray's RayTaskError shows a worker's traceback and keeps the error as `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::train() (pid=1)\n  File ...\n" + "x" * 600)
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("CUDA error:\n  out of memory"), "FAILED", "RuntimeError: CUDA error: out of memory"),
        (TrainingError("loss is nan at step 7"), "FAILED", "loss is nan at step 7"),
        (RayLikeError(ValueError("bad row")), "FAILED", "ValueError: bad row"),
        (
            ConnectionError("http://anna:hunter2@host refused"),
            "FAILED",
            "ConnectionError: http://***@host refused",
        ),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (SystemExit(143), "KILLED", "SystemExit: 143"),
    ],
)
def test_run_that_does_not_finish(tracking: Tracking, error: BaseException, status: str, reason: str) -> None:
    with pytest.raises(type(error)) as caught, tracking.start("r", params={}, tags={}) as run:  # noqa: PT012
        run.log({"loss": 1.0}, 1)
        raise error
    assert caught.value is error
    found = tracking.client.get_run(run.id)
    assert (found.info.status, found.data.tags["raykd.failure"]) == (status, reason)
    assert found.data.metrics == {"loss": 1.0}  # what was logged before is there


def test_no_credential_reaches_mlflow_or_the_log(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "harmless")
    url = "s3://anna:hf_s3cret@host/x and postgresql://anna:hunter2@db"
    with pytest.raises(ValueError), tracking.start("r", params={"p": url}, tags={"t": url}) as run:  # noqa: PT012
        run.set_tags({"more": f"{url} harmless"})
        run.dataset("d", "00", url, split="train", rows=1)
        run.artifact_json({"url": url, "ours": "user@host"}, "x.json")
        run.log({"m": math.inf}, 1)
        raise ValueError(url)
    run.log({"m": 1.0}, 2)
    tracking.start("other", params={}, tags={}).finish("FAILED", url)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("s3cret", "hunter2"):
        assert secret not in caplog.text
        assert secret.encode() not in kept
    assert tracking.client.get_run(run.id).data.tags["more"].endswith("harmless")
    assert "lost {'m': 1.0}" in caplog.text
    assert scrub("see https://github.com/a/b and a@b.c") == "see https://github.com/a/b and a@b.c"
    assert one_line(ValueError()) == "ValueError"


def test_model_is_logged_downloaded_loaded_and_registered(
    tracking: Tracking, migrated: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process's own store may be another one.
    elsewhere = Tracking(f"sqlite:///{shutil.copy(migrated, tmp_path / 'other.db')}", "x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere.uri)
    with tracking.start("student", params={}, tags={}) as run:
        run.log({"validation/accuracy": 0.9}, 40)
        first, second = run.model(tiny_bert, "student: 1/2"), run.model(tiny_bert, "student")
        with pytest.raises(FileNotFoundError):
            run.model(tmp_path / "missing", "missing")
        broken = shutil.copytree(tiny_bert, tmp_path / "broken")
        (broken / "model.safetensors").unlink()
        (broken / "model.safetensors").symlink_to("nowhere")
        with pytest.raises(OSError):
            run.model(broken, "broken")
    outputs = tracking.client.get_run(run.id).outputs.model_outputs
    assert {(output.model_id, output.step) for output in outputs} == {(first, 40), (second, 40)}
    found = {model.model_id: model for model in tracking.client.search_logged_models([tracking.experiment_id])}
    assert found[first].source_run_id == run.id
    assert sorted(str(model.status) for model in found.values()) == ["FAILED", "READY", "READY"]
    assert tracking.registered("digits", "best", "0123") is None
    assert tracking.register(first, "digits", "best", "0123") == "1"
    assert tracking.registered("digits", "best", "0123") == ("1", first)
    assert tracking.registered("digits", "best", "4567") is None
    assert tracking.registered("digits", "other", "0123") is None
    assert tracking.register(second, "digits", "best", "4567") == "2"
    assert tracking.registered("digits", "best", "0123") is None, "the alias is on another model"
    assert tracking.register(second, "other digits", "best") == "1"
    assert int(tracking.client.get_model_version_by_alias("digits", "best").version) == 2
    assert tracking.client.get_model_version("digits", "1").run_id == run.id
    shown = json.loads(tracking.client.get_logged_model(second).tags["mlflow.modelVersions"])
    assert [(entry["name"], int(entry["version"])) for entry in shown] == [("digits", 2), ("other digits", 1)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    for uri in (f"models:/{first}", "models:/digits@best"):
        assert same_outputs(tiny_bert, Path(mlflow.artifacts.download_artifacts(uri)))


def test_24_concurrent_runs_lose_nothing(tracking: Tracking) -> None:
    with tracking.start("sweep", params={}, tags={}) as parent:

        def trial(number: int) -> None:
            with tracking.start(f"trial {number}", params={"n": number}, tags={}, parent=parent) as run:
                for step in range(200):
                    run.log({"train/loss": step / 7, "train/lr": 0.1}, step)
                    parent.log({f"best/{number}": step}, step)

        threads = [threading.Thread(target=trial, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = tracking.client.search_runs([tracking.experiment_id], "params.n != ''")
    assert [run.info.status for run in found] == ["FINISHED"] * 24
    for run in found:
        points = tracking.client.get_metric_history(run.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in points] == [(step, step / 7) for step in range(200)]
    assert all(len(history(tracking, parent, f"best/{number}")) == 200 for number in range(24))


def rename(file: Path, table: str, new: str) -> None:
    """Breaks a store, or mends it. A lock would do as well, but MLflow waits 20 s for one."""
    with sqlite3.connect(file) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {new}")
    connection.close()


def test_metrics_that_mlflow_does_not_take_arrive_later(
    tracking: Tracking, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raykd.tracking.run.LAST_TRIES", 30)
    run = tracking.start("r", params={}, tags={})
    rename(tmp_path / "mlflow.db", "metrics", "gone")
    started = time.monotonic()
    for step in range(2500):
        run.log({"loss": step}, step)
    while "sent later" not in caplog.text:
        assert time.monotonic() - started < 20
        time.sleep(0.05)
    restore = threading.Timer(1.5, rename, (tmp_path / "mlflow.db", "gone", "metrics"))
    restore.start()
    run.finish()  # tries again until then
    restore.join()
    assert [step for step, _ in history(tracking, run, "loss")] == list(range(2500))
    assert caplog.text.count("sent later") == 1
    assert "nothing was lost" in caplog.text


def test_what_mlflow_never_took_is_named(tracking: Tracking, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tracking.start("r", params={}, tags={})
    rename(tmp_path / "mlflow.db", "runs", "gone")
    run.log({"loss": 1.0, "train/lr": 1.0}, 3)
    run.log({"loss": 1.0}, 7)
    run.finish()  # no exception: the training itself went well
    assert "lost 3 points, steps 3 to 7: loss, train/lr" in caplog.text
    assert "is FINISHED but still says RUNNING" in caplog.text


# --- a server --------------------------------------------------------------------------------------------


@pytest.fixture
def server(migrated: Path, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "server").mkdir()
    shutil.copy(migrated, tmp_path / "server" / "mlflow.db")
    with mlflow_server(tmp_path / "server" / "mlflow.db", tmp_path / "server") as address:
        yield address


def test_server(
    server: str, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/")
    tracking = Tracking(tracking_uri(None, Path("unused")), "digits")
    with tracking.start("parent", params={}, tags={}) as parent:
        with tracking.start("child", params={"a": 1}, tags={"raykd.role": "student"}, parent=parent) as run:
            for step in range(1200):
                run.log({"train/loss": step if step % 2 else math.inf}, step)
            run.dataset("digits", "ab", "/data/digits", split="train", rows=300)
            run.artifact_json({"a": 1}, "results.json")
            model = run.model(tiny_bert, "student")
        with (
            pytest.raises(SystemExit),
            tracking.start("stopped", params={}, tags={}, parent=parent) as stopped,
        ):
            raise SystemExit(143)
    again = tracking.resume(run.id)
    again.log({"train/loss": 0.0}, 1199)
    again.log({"train/loss": 0.0}, 1200)
    again.finish()
    found = tracking.client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.parentRunId"] == parent.id
    assert [step for step, _ in history(tracking, run, "train/loss")] == list(range(1201))
    assert math.isnan(history(tracking, run, "train/loss")[0][1])
    assert found.inputs.dataset_inputs[0].dataset.name == "digits"
    assert found.outputs.model_outputs[0].model_id == model
    assert tracking.client.get_run(stopped.id).info.status == "KILLED"
    assert tracking.register(model, "digits", "best") == "1"
    assert "digits" in tracking.client.get_logged_model(model).tags["mlflow.modelVersions"]
    for uri in (f"models:/{model}", "models:/digits@best"):
        assert same_outputs(tiny_bert, Path(mlflow.artifacts.download_artifacts(uri)))
    assert "View run" not in capfd.readouterr().out  # MLflow's own lines


def test_a_command_waits_for_a_server_that_is_restarted(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.1)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    server = Server(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    server.start()
    try:
        tracking = Tracking(tracking_uri(server.address, tmp_path), "digits")
        run = tracking.start("before", params={}, tags={})
    finally:
        server.stop()
    run.log({"loss": 1.0}, 1)
    assert not run.flush(), "what can be sent later does not wait"
    with ThreadPoolExecutor(1) as thread:
        after = thread.submit(tracking.start, "after", params={"a": 1}, tags={})
        until(lambda: "MLflow does not answer; waiting for it" in caplog.text)
        assert not after.done()
        server.start()
        try:
            after.result(120).finish()
            run.finish()
            assert tracking.client.get_run(after.result().id).data.params == {"a": "1"}
            assert [step for step, _ in history(tracking, run, "loss")] == [1]
        finally:
            server.stop()
    assert caplog.text.count("MLflow does not answer; waiting for it") == 1
    assert "MLflow answers again" in caplog.text
    with ThreadPoolExecutor(1) as thread:
        never = thread.submit(tracking.start, "never", params={}, tags={})
        until(lambda: caplog.text.count("MLflow does not answer; waiting for it") == 2)
        tracking.hurry()
        with pytest.raises(MlflowException, match="failed with exception"):
            never.result(60)
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.0)
    with pytest.raises(MlflowException, match="failed with exception"):
        Patient(tracking.client.direct).get_run(run.id)


# --- a store that was moved ----------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_a_store_that_was_moved_has_its_artifacts_beside_it(migrated: Path, tmp_path: Path, copied: bool) -> None:
    """MLflow's database names them by absolute addresses. The old place is neither read nor made again."""
    old, new = tmp_path / "old", tmp_path / "moved here"
    old.mkdir()
    shutil.copy(migrated, old / "mlflow.db")
    before = Tracking(tracking_uri(None, old), "digits")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with before.start("a", params={}, tags={}) as run:
        run.artifact_json(1, "said.json")
        model_id = run.model(model, "m")
    before.register(model_id, "digits", "best")
    chosen = before.client.create_experiment("elsewhere", (tmp_path / "chosen").as_uri())
    (shutil.copytree if copied else shutil.move)(old, new)
    kept = sorted(old.rglob("*.json"))
    for path in kept:
        path.write_text("2")  # what is now there is of another store
    utils._artifact_repos_cache.clear()  # which each process has for itself

    after = Tracking(tracking_uri(None, new), "digits")
    here = (new / "mlartifacts").as_uri()
    found = after.client.download_artifacts(run.id, "said.json", str(tmp_path))
    assert json.loads(Path(found).read_text()) == 1
    after.resume(run.id).artifact_json(3, "more.json")
    assert len(list(new.rglob("more.json"))) == 1
    assert after.client.get_logged_model(model_id).artifact_location.startswith(here)
    version = after.client.get_model_version_by_alias("digits", "best")
    assert version.source.startswith(here)
    assert after.client.get_experiment(chosen).artifact_location == (tmp_path / "chosen").as_uri()
    assert sorted(old.rglob("*.json")) == kept
    assert copied or not old.exists()


def test_a_copied_database_without_its_artifacts_does_not_write_into_the_original(migrated: Path, tmp_path) -> None:
    """Only the database was copied, or no run had an artifact yet."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    shutil.copy(migrated, old / "mlflow.db")
    with Tracking(tracking_uri(None, old), "digits").start("a", params={}, tags={}) as run:
        run.artifact_json(1, "said.json")
    shutil.copy(old / "mlflow.db", new / "mlflow.db")
    with Tracking(tracking_uri(None, new), "digits").start("b", params={}, tags={}) as run:
        run.artifact_json(2, "more.json")
    assert [path.name for path in new.rglob("*.json")] == ["more.json"]
    assert [path.name for path in old.rglob("*.json")] == ["said.json"]


def test_a_store_that_a_running_command_sees_elsewhere_keeps_its_addresses(migrated: Path, tmp_path: Path) -> None:
    """A command in a container, and a report of the same folder outside of it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    shutil.copy(migrated, inside / "mlflow.db")
    with Tracking(tracking_uri(None, inside), "digits").start("a", params={}, tags={}) as run:
        run.artifact_json(1, "said.json")
    shutil.move(inside, outside)
    (outside / "digits").mkdir()
    uri = tracking_uri(None, outside)
    with FileLock(outside / "digits" / ".lock"):
        address = Tracking(uri, "digits").client.get_run(run.id).info.artifact_uri
        assert address.startswith(inside.as_uri())
        found = local_artifacts(uri, run.id, address)
        assert found is not None
        assert (found / "said.json").read_text() == "1"
        assert is_elsewhere(uri, run.id, address)
        holder = outside / "digits" / ".lock.json"
        for folder, place in ((inside, inside), (outside, outside)):
            holder.write_text(json.dumps({"process": 1, "folder": str(folder / "digits")}))
            address = Tracking(uri, "digits").client.get_run(run.id).info.artifact_uri
            assert address.startswith(place.as_uri()), "a command that sees it here has no other addresses"
