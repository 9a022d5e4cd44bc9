"""Runs of a resumed command in MLflow: each belongs to one training. Without Ray."""

import dataclasses
import io
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from rich.console import Console
from tiny import bert, reviews_job
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.common.errors import ConfigError, TrainingError
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import Config
from raykd.experiment.ending import analysis_of, shown_path
from raykd.experiment.work import Work
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.reports.read import read
from raykd.search.sweep import _registered
from raykd.tasks import Evaluation
from raykd.tracking.continued import scored_tag
from raykd.tracking.experiment import Tracking
from raykd.tracking.recorder import Recorder
from raykd.tracking.tags import Tag


@pytest.fixture
def prepared_job(tmp_path, migrated_store) -> tuple[Tracking, Config, Prepared]:
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    config = build(reviews_job(tmp_path))
    prepared = prepare(config)
    (config.folder / "config.yaml").touch()
    return Tracking(f"sqlite:///{tmp_path}/mlflow.db", "reviews"), config, prepared


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_the_report_knows_of_live_logits(prepared_job, mode):
    tracking, config, prepared = prepared_job
    config = build(override(config.model_dump(mode="json"), {"logits.mode": mode}))
    with Recorder(tracking, config, prepared, "distill") as recorder:
        pass
    parent = tracking.client.get_run(recorder.parent.id)
    assert read(tracking.client, tracking.uri, parent).live == (mode == "live")


def test_the_report_of_a_run_that_cannot_be_read_yet_is_named_by_its_folder(prepared_job, monkeypatch, caplog):
    """Its id alone would be looked up in the store of a job without `output` and `tracking.uri`."""
    tracking, config, prepared = prepared_job
    with Recorder(tracking, config, prepared, "distill") as recorder:
        monkeypatch.setattr(recorder, "flush", lambda: False)  # as an MLflow server that is away
        assert analysis_of(recorder) is None
    [line] = [record.getMessage() for record in caplog.records if "raykd report" in record.getMessage()]
    assert line.endswith(f"raykd report {shown_path(config.folder)}")


def test_a_command_that_continues_another_is_noted(prepared_job, monkeypatch):
    """And as an extension if one of those had ended with scores, and this one is to train more."""
    tracking, config, prepared = prepared_job
    noted: dict[str, str] = {}

    def command(line: str, config: Config, error: BaseException | None = None) -> dict[str, str]:
        monkeypatch.setattr("sys.argv", ["raykd", *line.split()])
        recorder = Recorder(tracking, config, prepared, "sweep", (), noted)
        noted[""] = recorder.parent.id
        recorder.__enter__()
        recorder.__exit__(type(error) if error else None, error, None)
        return tracking.client.get_run(recorder.parent.id).data.tags

    config = build(override(config.model_dump(mode="json"), {"search": {"space": {}, "seeds": 1}}))
    more = build(override(config.model_dump(mode="json"), {"search.seeds": 2, "ray.max_retries": 7}))
    most = build(override(config.model_dump(mode="json"), {"search.seeds": 3}))
    prepared.splits["test"] = dataclasses.replace(prepared.splits["test"], notes=("a row is twice there",))
    tags = command("sweep job.yaml", config, OSError("no room"))
    assert Tag.EARLIER not in tags
    assert tags[Tag.DATA_NOTES] == "a row is twice there"
    tags = command("sweep job.yaml --resume seed=2", more)
    assert Tag.EXTENDED not in tags, "the one before had not been scored"
    assert tags["mlflow.source.name"] == "raykd sweep job.yaml --resume seed=2"
    tags = command("sweep job.yaml --resume", more)
    assert Tag.EXTENDED not in tags, "nothing else was asked for"
    other = build(override(more.model_dump(mode="json"), {"ray.max_retries": 8}))
    assert Tag.EXTENDED not in command("sweep job.yaml --resume", other), "this changes nothing that is shown"
    assert Tag.EXTENDED not in command("sweep job.yaml --resume", config, KeyboardInterrupt()), "it is less"
    tags = command("sweep job.yaml --resume again", most)
    assert tags[Tag.EXTENDED] == "1", "its scores had been seen before the last one was stopped"
    assert command("sweep job.yaml --resume again", most)[Tag.EXTENDED] == "1", "the same extension"
    commands = ["raykd sweep job.yaml", "raykd sweep job.yaml --resume seed=2", *["raykd sweep job.yaml --resume"] * 3]
    assert tags[Tag.EARLIER].splitlines() == commands


def test_a_sweep_that_failed_after_its_scores_is_extended_too(prepared_job):
    """One with seeds that have failed: its report had those of the others."""
    tracking, config, prepared = prepared_job
    config = build(override(config.model_dump(mode="json"), {"search": {"space": {}, "seeds": 1}}))
    more = build(override(config.model_dump(mode="json"), {"search.seeds": 2}))
    noted: dict[str, str] = {}

    def failing() -> None:
        with Recorder(tracking, config, prepared, "sweep", (), noted) as recorder:
            noted[""] = recorder.parent.id
            recorder.parent.set_tags(scored_tag(config))
            raise TrainingError("1 of the seeds failed")

    with pytest.raises(TrainingError):
        failing()
    assert tracking.client.get_run(noted[""]).info.status == "FAILED"
    with Recorder(tracking, more, prepared, "sweep", (), noted):
        pass
    assert tracking.client.get_run(noted[""]).data.tags[Tag.EXTENDED] == "1"


def test_a_run_belongs_to_a_training_and_not_to_a_name(prepared_job):
    """The same name is first training A, then B, then A again: two runs, and the one that counts is a baseline."""
    tracking, config, prepared = prepared_job
    [a] = student_jobs(config, prepared, FINETUNE, (), "finetune")
    b = dataclasses.replace(a, seed=5)
    noted: dict[str, str] = {}

    def command(job, accuracy: float) -> str:
        with Recorder(tracking, config, prepared, "sweep", (), noted) as recorder:
            noted[""] = recorder.parent.id
            recorder.children.on_new = noted.__setitem__
            recorder.register([job], "baseline", a.name)
            run = recorder.children.runs[a.name]
            run.log({"validation/accuracy": accuracy}, 5)
            recorder._final(run, {"validation": {"accuracy": accuracy}})
            return run.id

    def found(run_id: str) -> tuple[str, str, float]:
        data = tracking.client.get_run(run_id).data
        return data.tags["raykd.role"], data.tags["raykd.fingerprint"], data.metrics["final_validation/accuracy"]

    first = command(a, 0.25)
    second = command(b, 0.5)
    assert first != second
    assert found(first) == ("superseded", a.fingerprint, 0.25)
    assert found(second) == ("baseline", b.fingerprint, 0.5)
    assert command(a, 0.75) == first
    assert found(first) == ("baseline", a.fingerprint, 0.75), "final metrics are those of the last command"
    assert found(second) == ("superseded", b.fingerprint, 0.5)
    [point] = tracking.client.get_metric_history(first, "validation/accuracy")
    assert point.value == 0.25, "a step that is there is not logged twice"

    tracking.client.delete_run(first)
    third = command(a, 0.5)
    assert third not in (first, second), "a run that somebody has deleted is not resumed"
    tracking.client.delete_run(noted[""])
    with pytest.raises(ConfigError) as refused:
        command(a, 0.5)
    assert refused.value.key == "tracking.uri"
    assert noted[""] in refused.value.reason


def test_a_trial_that_is_left_waiting_has_not_finished(prepared_job):
    """One whose command continues without it, and one that a killed command has left."""
    tracking, config, prepared = prepared_job
    jobs = student_jobs(config, prepared, FINETUNE, (), "finetune")
    left, killed = (dataclasses.replace(jobs[0], name=f"kd {i}", seed=i) for i in (1, 2))
    noted: dict[str, str] = {}
    recorder = Recorder(tracking, config, prepared, "sweep", (), noted)
    noted[""] = recorder.parent.id
    recorder.children.on_new = noted.__setitem__
    recorder.register([left], "trial", left.name)
    recorder.register([killed], "trial", killed.name)
    recorder.end_waiting_trial(left, "search.hours = 1 is used up")

    def states() -> dict[str, str]:
        return {key.partition("#")[0]: tracking.client.get_run(run_id).info.status for key, run_id in noted.items()}

    assert states() == {"": "RUNNING", "kd 1": "KILLED", "kd 2": "RUNNING"}
    with Recorder(tracking, config, prepared, "sweep", (), noted):  # the first one was killed
        assert states() == {"": "RUNNING", "kd 1": "KILLED", "kd 2": "KILLED"}
    assert states()[""] == "FINISHED"


def test_a_given_teacher_has_finished_once_it_is_scored(prepared_job):
    """No training of the command says so: it is read, not trained."""
    tracking, config, prepared = prepared_job
    rows = {split: Evaluation({"accuracy": 0.5}, np.ones(2), [{}]) for split in ("validation", "test")}
    with pytest.raises(TrainingError), Recorder(tracking, config, prepared, "distill") as recorder:  # noqa: PT012
        for name in ("a", "b"):
            recorder.note(name, "teacher", {"train_right_share": 0.5})
        recorder.scored("a", "teacher", "given", rows)
        raise TrainingError("the student's loss is nan")
    states = {name: tracking.client.get_run(run.id).info.status for name, run in recorder.children.runs.items()}
    assert states == {"a": "FINISHED", "b": "FAILED"}


def refuse_files(tracking: Tracking, run_id: str | None = None) -> None:
    """From now on, MLflow cannot store artifacts of a run, or of any run of the experiment."""
    client = tracking.client
    if run_id:
        where = client.get_run(run_id).info.artifact_uri
    else:
        where = client.get_experiment(tracking.experiment_id).artifact_location
    folder = Path(unquote(urlsplit(where).path))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()


def test_files_that_mlflow_refuses_do_not_end_a_command(prepared_job, caplog):
    tracking, config, prepared = prepared_job
    rows = {split: Evaluation({"accuracy": 0.5}, np.ones(2), [{}]) for split in ("validation", "test")}
    with Recorder(tracking, config, prepared, "distill") as recorder:
        recorder.scored_by({"a": "logits a", "b": "logits b"}, [])
        for name in ("a", "b"):
            recorder.note(name, "teacher", {"train_right_share": 0.5})
        refused = recorder.children.runs["a"].id
        refuse_files(tracking, refused)
        scored = [recorder.scored(name, "teacher", "given", rows) for name in ("a", "b")]
    assert [s.metrics["test"]["accuracy"] for s in scored] == [0.5, 0.5]
    assert "a: its files or tags are not all in MLflow" in caplog.text
    found = [tracking.client.get_run(s.mlflow_run_id) for s in scored]
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    assert [run.data.metrics["final_test/accuracy"] for run in found] == [0.5, 0.5]
    assert [Tag.IDENTITY in run.data.tags for run in found] == [False, True], "nothing links to a run without its files"


def test_a_best_student_that_cannot_be_registered_does_not_end_a_sweep(prepared_job, tmp_path, caplog):
    tracking, config, prepared = prepared_job
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**bert()))
    model.save_pretrained(tmp_path / "model")
    [job] = student_jobs(config, prepared, FINETUNE, (), "kd")
    with Recorder(tracking, config, prepared, "sweep") as recorder:
        recorder.register([job], "student", job.name)
        refuse_files(tracking)
        work = Work(config, prepared, Console(file=io.StringIO()), recorder, 0.0)
        assert _registered(work, job.name, tmp_path / "model") is None
        assert f"{job.name} is not registered" in caplog.text
        Path(unquote(urlsplit(tracking.client.get_experiment(tracking.experiment_id).artifact_location).path)).unlink()
        model_id = _registered(work, job.name, tmp_path / "model")
        assert _registered(work, job.name, tmp_path / "model") == model_id, "once"
    assert tracking.client.get_model_version_by_alias(config.name, "best").version == 1


def test_a_store_that_takes_no_files_is_refused_before_the_trainings(prepared_job):
    tracking, config, prepared = prepared_job
    refuse_files(tracking)
    recorder = Recorder(tracking, config, prepared, "distill")
    with pytest.raises(ConfigError) as refused, recorder:
        pass
    assert refused.value.key == "tracking.uri"
    assert tracking.client.get_run(recorder.parent.id).info.status == "FAILED"


def test_runs_of_a_resumed_sweep_stay_in_its_experiment_when_that_is_renamed(prepared_job):
    tracking, config, prepared = prepared_job
    with Recorder(tracking, config, prepared, "sweep") as recorder:
        parent = recorder.parent.id
    params = tracking.client.get_run(parent).data.params
    assert params["method.type"] == params["training.steps"] == "", "a sweep has several"
    assert (params["data.test"], params["teachers.names"]) == (config.data.test, "a, b")
    tracking.client.rename_experiment(tracking.experiment_id, "archive")
    again = Tracking(tracking.uri, "reviews")
    assert again.experiment_id != tracking.experiment_id
    with Recorder(again, config, prepared, "sweep", (), {"": parent}) as recorder:
        run = recorder.children.get("ensemble", "ensemble", None)
    found = tracking.client.get_run(run.id)
    assert found.info.experiment_id == tracking.experiment_id
    assert found.data.params["method.type"] == ""


def test_a_setting_trains_the_same_model_again(prepared_job, tmp_path):
    """Also where a value is the neutral one, which a preset or the job's own section would replace."""
    tracking, _, _ = prepared_job
    tree = override(reviews_job(tmp_path), {"training.learning_rate": 0.005, "student.training.learning_rate": 5e-5})
    config = build(tree)
    prepared = prepare(config)
    with Recorder(tracking, config, prepared, "distill") as recorder:
        for method in ({"type": "kd", "temperature": 1.0, "alpha": 0.0}, {"type": "weighted", "W": 1.0}, "finetune"):
            [job] = student_jobs(config, prepared, Method.model_validate(method), ())
            again = build(override(tree, recorder.setting(job)))
            [same] = student_jobs(again, prepare(again), again.method, ())
            assert same.fingerprint == job.fingerprint
