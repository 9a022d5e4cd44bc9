"""TensorBoard and Weights & Biases get what MLflow gets (`tracking.also`)."""

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import reviews_job

from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.config.schema import Config
from raykd.tracking.also import check_also, openers, where
from raykd.tracking.experiment import Tracking

PARAMS = {"method.alpha": 0.5, "training.steps": 40, "seed": "", "data": "reviews.jsonl"}


def job(folder: Path, *also: str) -> Config:
    return build(reviews_job(folder, tracking={"also": list(also)}))


def log_two_runs(config: Config, store: Path) -> tuple[Tracking, str, str]:
    """A command's run, and a teacher's that is stopped and resumed, as `Recorder` logs them. Returns their ids."""
    config.folder.mkdir(parents=True)
    tracking = Tracking(f"sqlite:///{store}", "reviews", openers(config))
    with tracking.start("reviews distill", params=PARAMS, tags={}) as parent:
        child = tracking.start("vit/a", params=PARAMS | {"seed": 3}, tags={}, parent=parent)
        child.log({"validation/accuracy": 0.25}, 2)  # before the steps that led to it
        for step in (1, 2):
            child.log({"train/loss": 1 / step}, step)
        child.finish("KILLED")
        again = tracking.resume(child.id)
        again.log({"train/loss": 9.0, "train/norm": math.nan}, 2)  # step 2 of the loss is there already
        again.log({"train/loss": 0.25}, 3)
        again.finish()
    return tracking, parent.id, child.id


@pytest.fixture
def store(tmp_path: Path, migrated_store: Path) -> Path:
    return Path(shutil.copy(migrated_store, tmp_path / "mlflow.db"))


def test_tensorboard_reads_the_metrics_and_parameters_that_mlflow_has(tmp_path, store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    config = job(tmp_path, "tensorboard")
    tracking, parent, child = log_two_runs(config, store)
    folder = config.folder / "tensorboard"
    assert where(config) == [f"TensorBoard: tensorboard --logdir {folder}"]
    assert {path.name for path in folder.iterdir()} == {f"reviews_distill-{parent[:8]}", f"vit_a-{child[:8]}"}
    events = EventAccumulator(str(folder / f"vit_a-{child[:8]}"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert set(tags) == {"validation/accuracy", "train/loss", "train/norm"}
    for tag in tags:
        ours = [(e.step, e.value) for e in events.Scalars(tag)]
        theirs = [(m.step, m.value) for m in tracking.client.get_metric_history(child, tag)]
        assert str(sorted(ours)) == str(sorted(theirs)), tag  # as text, because NaN is not equal to itself
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (shown["method.alpha"].number_value, shown["data"].string_value) == (0.5, "reviews.jsonl")


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_weights_and_biases_records_the_metrics_and_parameters_that_mlflow_has(tmp_path, store, monkeypatch):
    pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = job(tmp_path, "wandb")
    check_also(config)
    _, parent, child = log_two_runs(config, store)
    points, params, groups = [], {}, set()
    for path in sorted(config.folder.glob(f"wandb/offline-run-*/run-{child}.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                points.append({i.key or i.nested_key[0]: i.value_json for i in record.history.item if i})
            elif record.WhichOneof("record_type") == "run":
                params |= {i.key or i.nested_key[0]: i.value_json for i in record.run.config.update}
                groups.add(record.run.run_group)
    assert groups == {parent}
    assert (params["method.alpha"], params["data"]) == ("0.5", '"reviews.jsonl"')
    values = {(key, int(p["step"])): float(v) for p in points for key, v in p.items() if "/" in key and v != "NaN"}
    expected = {1: 1.0, 2: 0.5, 3: 0.25}
    assert values == {("validation/accuracy", 2): 0.25} | {("train/loss", s): v for s, v in expected.items()}


def test_a_tracker_that_fails_costs_mlflow_nothing(tmp_path, store, caplog):
    class Full:
        def log(self, points) -> None:
            raise OSError(28, "No space left on device")

        def end(self, status) -> None:
            raise AssertionError("it was given up")

    def refuses(*given):
        raise ValueError("no such project")

    tracking = Tracking(f"sqlite:///{store}", "reviews", [lambda *given: Full(), refuses])
    with tracking.start("a", params=PARAMS, tags={}) as run:
        run.log({"train/loss": 1.0}, 1)
        assert run.flush()
        run.log({"train/loss": 0.5}, 2)
    assert [p.value for p in tracking.client.get_metric_history(run.id, "train/loss")] == [1.0, 0.5]
    [refused, full] = [r.getMessage() for r in caplog.records if "in MLflow only" in r.msg or "MLflow does" in r.msg]
    assert "no such project" in refused
    assert run.id in full
    assert "No space left" in full


def test_a_missing_library_or_login_is_one_line_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"tracking\.also.*wandb.*pip install wandb"):
        check_also(job(tmp_path, "tensorboard", "wandb"))
    check_also(job(tmp_path, "tensorboard"))


def test_nothing_else_is_written_unless_asked_for(tmp_path):
    assert openers(job(tmp_path)) == []
    assert build(reviews_job(tmp_path, tracking={"also": "tensorboard"})).tracking.also == ("tensorboard",)
    with pytest.raises(ConfigError) as refused:
        job(tmp_path, "comet")
    assert refused.value.key == "tracking.also.0"
