"""`raykd check --cluster`: what is counted, what is left behind, and that finished work costs nothing. No timings."""

import dataclasses
import io
import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tiny import bert, capitals_job, questions_job, reviews_job

from raykd.checks import probe
from raykd.checks.dry_run import _config, makespan
from raykd.checks.estimate import duration
from raykd.checks.forecast import rounds_seconds
from raykd.checks.kept import state_sizes
from raykd.checks.probe import Timings
from raykd.checks.subset import short_job, step_tokens, subset
from raykd.checks.workload import Workload, workload_of
from raykd.cli import main
from raykd.common.units import shown_size
from raykd.config.data import GenerateConfig
from raykd.config.load import build, override
from raykd.config.models import LoraConfig
from raykd.experiment.command import run_experiment
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs, teacher_jobs
from raykd.training.endless import endless_job
from raykd.training.events import Done, Evaluated
from raykd.training.loop import train

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def soon(monkeypatch):
    """A short probe, since these tests do not use its figures, and time for a dry run."""
    monkeypatch.setattr(probe, "SECONDS", 0.1)
    monkeypatch.setattr(probe, "LEAST_SECONDS", 1e6)


def workload(tree: dict) -> Workload:
    config = build(tree)
    return workload_of(config, prepare(config), 0.0)


def said() -> Console:
    return Console(file=io.StringIO(), width=200)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write(tree: dict, folder: Path) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def block_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "runs" / "store" / "logits").glob("*/*.block"))


def test_rows_that_are_measured_keep_their_groups(tmp_path):
    prepared = prepare(build(override(reviews_job(tmp_path), {"data.group": "label"})))
    small = subset(prepared, dict.fromkeys(prepared.splits, 7), tmp_path / "small")
    for split in small.splits.values():
        assert len(split.rows) == 7
        assert [int(group) for group in split.groups] == split.rows["label"][:]


def test_counts_of_a_distillation(tmp_path):
    """60 training rows, 20 and 40 of validation and test; a fold model answers for a third of the training rows."""
    tree = override(reviews_job(tmp_path), {"teachers.a.folds": 3, "student.seed": [3, 4]})
    found = workload(tree)
    assert found.command == "distill"
    assert [t.job.name for t in found.teachers.trainings] == [
        "a fold 1",
        "a fold 2",
        "a fold 3",
        "b",
        "baseline seed 3",
        "baseline seed 4",
    ]
    assert [t.job.steps for t in found.teachers.trainings] == [10] * 6
    assert (found.teachers.done, found.teachers.at_once) == (0, 4), "four CPUs, one each"
    [student] = found.students
    assert (len(student.trainings), student.done, student.at_once) == (2, 0, 2)
    a, b = found.precomputes
    assert (a.rows, a.stored, a.passes) == (120, 0, 60 + 3 * (20 + 40))
    assert (b.rows, b.stored, b.passes) == (120, 0, 120)
    # A header of 192 bytes, 40 bytes a row up to a multiple of 64, two fp16 values a row; train, validation, test.
    assert a.bytes == b.bytes == 3 * 192 + (2432 + 832 + 1600) + 120 * 2 * 2
    assert found.overlap, "two teachers and a student fit four CPUs"
    assert not found.is_empty


@pytest.mark.slow
def test_finished_work_costs_nothing(tmp_path, capsys):
    tree = reviews_job(tmp_path, method="kd")
    before = workload(tree)
    run_experiment(build(tree), "teach", said())
    taught = workload(tree)
    assert (len(taught.teachers.trainings), taught.teachers.done) == (1, 2), "the baseline is left"
    assert [(p.rows, p.stored, p.passes, p.bytes) for p in taught.precomputes] == [(0, 120, 0, 0)] * 2
    assert block_bytes(tmp_path) == sum(p.bytes for p in before.precomputes), "to the byte"
    assert len(taught.students[0].trainings) == 1
    run_experiment(build(tree), "distill", said())
    assert workload(tree).is_empty
    capsys.readouterr()
    assert main(["check", write(tree, tmp_path), "--cluster"]) == 0
    text = capsys.readouterr().out
    assert "nothing is left to train or to compute" in text
    assert "estimate:" not in text


@pytest.mark.long
def test_size_of_ragged_rows(tmp_path):
    """A row of question answering has as many classes as tokens, and a context may be several rows."""
    tree = questions_job(tmp_path)
    found = workload(tree)
    rows = sum(len(e.open()) for e in prepare(build(tree)).student.splits.values())
    assert rows > 48
    assert [p.rows for p in found.precomputes] == [rows, rows]
    run_experiment(build(tree), "teach", said())
    assert block_bytes(tmp_path) == sum(p.bytes for p in found.precomputes), "to the byte"


SEARCH = {
    "trials": 2,
    "seeds": 2,
    "space": {
        "method.type": ["kd", "born_again"],
        "method.alpha": {"uniform": [0.3, 0.9]},
        "method.generations": [2, 3],
    },
}


def test_counts_of_a_sweep(tmp_path):
    """Six arms: of fine-tuning and label smoothing there is one setting each, of the others two are tried."""
    found = workload(reviews_job(tmp_path, search=SEARCH))
    assert found.command == "sweep"
    assert len(found.teachers.trainings) == 2, "a sweep's baseline is an arm"
    trials, finals = found.students
    assert len(trials.trainings) == 1 + 1 + 4 * 2
    assert len(finals.trainings) == 6 * 2, "none of them is a teacher"
    assert {t.job.seed for t in trials.trainings} == {0}
    assert {t.job.seed for t in finals.trainings} == {3, 4}, "seeds 1 and 2 are the teachers'"
    assert [t.job.keep_model for t in (trials.trainings[0], finals.trainings[0])] == [False, True]
    generations = [t.job.method.generations for t in trials.trainings if t.job.name.startswith("born_again")]
    assert len(generations) == 2
    assert set(generations) <= {2, 3}
    capped = workload(reviews_job(tmp_path, search=SEARCH | {"concurrency": 3}))
    assert (trials.at_once, capped.students[0].at_once) == (4, 3)


def test_seeds_of_teachers_with_another_model_are_fresh(tmp_path):
    """Fine-tuning the student's model on seed 2 is not what teacher b is; on seed 1 it is teacher a."""
    tree = override(reviews_job(tmp_path, search=SEARCH), {"teachers.b.model.config": bert()})
    assert {t.job.seed for t in workload(tree).students[1].trainings} == {2, 3}


@pytest.mark.long
def test_estimate_leaves_nothing(tmp_path, capsys, soon):
    tree = override(reviews_job(tmp_path, method="kd"), {"student.seed": [3, 4]})
    job = write(tree, tmp_path)
    assert main(["check", job]) == 0
    before = files(tmp_path)
    capsys.readouterr()
    assert main(["check", job, "--cluster"]) == 0
    assert files(tmp_path) == before
    text = capsys.readouterr().out
    for line in (
        "teacher a, teacher b: 1 replica of 1 CPU, 0 GPU each",
        "teachers, baseline: 1 CPU, 0 GPU, 4 trainings at once",
        "student: 1 CPU, 0 GPU, 2 trainings at once",
        "1 node of 4 CPU, 0 GPU",
        "4 trainings, 40 steps",
        "240 rows, 240 teacher passes",
        "CPU-hours",
        "logits are computed while the students train",
    ):
        assert line in text
    assert text.splitlines()[-2] == "everything is valid"


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["hidden", {"top_k": 8}])
def test_estimate_of_language_models(tmp_path, capsys, soon, keep):
    tree = capitals_job(tmp_path, logits={"keep": keep})
    job = write(override(tree, {"task.generate": {"rows": 5, "max_new_tokens": 6}, "training.patience": 3}), tmp_path)
    assert main(["check", job]) == 0
    before = files(tmp_path)
    assert main(["check", job, "--cluster"]) == 0
    assert files(tmp_path) == before
    text = capsys.readouterr().out
    assert "estimate: " in text
    assert "not measured" not in text
    assert "5 texts" in text
    assert "training.patience" in text


@pytest.mark.long
def test_estimate_of_a_sweep(tmp_path, capsys, soon):
    job = write(reviews_job(tmp_path, search=SEARCH | {"scheduler": "asha", "concurrency": 2}), tmp_path)
    assert main(["check", job]) == 0
    before = files(tmp_path)
    assert main(["check", job, "--cluster"]) == 0
    assert files(tmp_path) == before
    text = capsys.readouterr().out
    assert "10 trainings" in text
    assert "search.scheduler = asha" in text


@pytest.mark.slow
def test_estimate_without_time_for_a_dry_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probe, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(probe, "SHARE", 0.0)
    job = write(override(reviews_job(tmp_path, method="kd"), {"ray.timeout_s": 300}), tmp_path)
    assert main(["check", job]) == 0
    before = files(tmp_path)
    assert main(["check", job, "--cluster"]) == 0
    assert files(tmp_path) == before
    text = capsys.readouterr().out
    likely, least, most = map(int, re.search(r"estimate: (\d+) s \((\d+) to (\d+) s", text).groups())
    unmeasured = int(re.search(r"not measured: (\d+) s", text)[1])
    assert 0 < unmeasured <= likely
    assert least <= likely - unmeasured / 2 + 1
    assert most >= likely + unmeasured / 2 - 1


@pytest.mark.slow
def test_probe_that_fails_leaves_nothing(tmp_path, capsys, soon):
    tree = reviews_job(tmp_path, method="kd")
    tree["training"] |= {"learning_rate": 1e30, "max_grad_norm": 1e30}
    job = write(tree, tmp_path)
    assert main(["check", job]) == 0
    before = files(tmp_path)
    assert main(["check", job, "--cluster"]) == 1
    assert "the loss is nan" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_probe_jobs_are_small_versions_of_the_job(tmp_path):
    """In question answering, where an example is several rows, and examples count from 0 again."""
    config = build(questions_job(tmp_path))
    prepared = prepare(config)
    [job] = teacher_jobs(config, prepared)["a"]
    long = endless_job(job, tmp_path / "probe", 0)
    assert (step_tokens(long, 5) == step_tokens(job, 5)).all(), "the same rows in the same order"
    other = endless_job(job, tmp_path / "probe", 1)
    cut = short_job(long, 8, 2)
    assert len({long.fingerprint, other.fingerprint, cut.fingerprint, job.fingerprint}) == 4
    rows = cut.validation.encoded.open()
    assert sorted(set(rows["example"])) == [0, 1, 2, 3]
    writing = dataclasses.replace(job, task=job.task.model_copy(update={"generate": GenerateConfig()}))
    assert short_job(writing, 8, 2).task.generate is None
    whole = prepared.student.splits["validation"].open()
    assert set(rows["row_id"]) < set(whole["row_id"])


@pytest.mark.parametrize("keep", ["all", "hidden", {"top_k": 8}])
def test_a_language_models_probe_trains_on_made_up_logits_of_each_form(tmp_path, keep, monkeypatch):
    config = build(capitals_job(tmp_path, method="kd", logits={"keep": keep}))
    prepared = prepare(config)
    [job] = (training.job for training in workload_of(config, prepared, 0.0).students[0].trainings)
    sizes = state_sizes(config, prepared)
    assert sizes == ({"a": 32, "b": 32} if keep == "hidden" else {})
    long = endless_job(job, tmp_path / "probe", 0, states=sizes)
    events = list(train(dataclasses.replace(long, steps=2, training=job.training)))
    assert math.isfinite(next(event for event in events if isinstance(event, Evaluated)).metrics["nll"])
    assert isinstance(events[-1], Done)
    monkeypatch.setattr("raykd.training.endless._MAX_NUMBERS", 1000)
    few = endless_job(job, tmp_path / "few", 0, states=sizes)
    assert len(few.row_subset) == job.training.batch_size, "a batch, since each row has six decisions or more"


@pytest.mark.parametrize(("keep", "different"), [("hidden", 3), ("all", 2)])
def test_each_teachers_head_takes_time_where_hidden_states_are_kept(tmp_path, keep, different):
    """Fine-tuning, one teacher and two are measured apart; where logits are stored, one and two are not."""
    config = build(capitals_job(tmp_path, method="kd", logits={"keep": keep}))
    students = workload_of(config, prepare(config), 0.0).students[0].trainings
    two = students[0]
    assert len(two.job.teachers) == 2
    jobs = [two.job, *(dataclasses.replace(two.job, teachers=two.job.teachers[:n]) for n in (1, 0))]
    assert len({probe.kind(dataclasses.replace(two, job=job)) for job in jobs}) == different


def test_trainings_of_different_speed_are_measured_apart(tmp_path):
    config = build(reviews_job(tmp_path))
    usual = workload_of(config, prepare(config), 0.0).students[0].trainings[0]
    lora = [LoraConfig(r=4), LoraConfig(r=4, target_modules=["query"]), LoraConfig(r=4)]
    changes = [{}, *({"lora": each} for each in lora)]
    for name in ("gradient_checkpointing", "compile"):
        changes.append({"training": usual.job.training.model_copy(update={name: True})})
    jobs = [dataclasses.replace(usual.job, **change) for change in changes]
    assert len({probe.kind(dataclasses.replace(usual, job=job)) for job in jobs}) == 5, "two adapters are the same"


def test_the_dry_run_of_rows_that_change_has_none_that_do(tmp_path):
    """Its method distils from stored logits; the job's own does not distil."""
    config = build(override(reviews_job(tmp_path, method="finetune"), {"data.augment": {"drop_words": 0.1}}))
    dry = _config(config, "distill", 1, tmp_path / "dry")
    assert (dry.method.distils, dry.data.augment) == (True, None)


def test_arithmetic_of_a_training(tmp_path):
    """40 steps of 2 s and 30 tokens of 0.1 s, 5 evaluations of 20 rows, then the 40 of test; a second generation."""
    config = build(override(reviews_job(tmp_path), {"training": {"steps": 40, "batch_size": 8}}))
    [job] = teacher_jobs(config, prepare(config))["a"]
    timings = Timings(2.0, 0.1, 0.5, 7.0, 100.0, 3.0, 11.0, 0.9, 1.1, 0)
    once = 7 + 40 * (2 + 30 * 0.1) + 5 * (3 + 20 * 0.5) + 11 + 40 * 0.5
    assert timings.seconds(job, 30) == pytest.approx(once)
    twice = dataclasses.replace(job, method=job.method.model_copy(update={"generations": 2}))
    assert timings.seconds(twice, 30) == pytest.approx(2 * once + 60 * 0.5), "it answers for the 60 training rows"


def test_makespan():
    assert makespan([3.0, 1.0, 1.0, 4.0], 2) == (6.0, 4), "3 and 1, 1, then 4 from 2 on"
    assert makespan([3.0, 1.0, 1.0, 4.0], 2, limit=1.5) == (3.0, 3)
    assert makespan([], 2) == (0.0, 0)


def test_seconds_of_teachers_that_do_not_all_fit():
    """Two at once: 9 and 2, then 4, which waits for both or takes the place of the second."""
    rounds = [[9.0, 2.0], [4.0], []]
    assert [rounds_seconds(rounds, takes_over) for takes_over in (False, True)] == [13.0, 9.0]
    assert rounds_seconds([[], []], takes_over=False) == 0, "all of their rows are stored"


def test_words():
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 9000)] == [
        "0 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "2 h 30 min",
    ]
    assert [shown_size(n) for n in (0, 999, 1500, 2_340_000, 5e9)] == ["0 B", "999 B", "1.5 kB", "2.34 MB", "5 GB"]


def test_students_under_every_method_are_counted_with_teachers_yet_to_come(tmp_path):
    """No teacher is trained yet, so nothing that learns from one can be done."""
    tree = reviews_job(tmp_path, method={"type": "kd", "teacher": "b"})
    config = build(tree)
    found = workload(tree)
    [training] = found.students[0].trainings
    assert [t.name for t in training.job.teachers] == ["b"]
    assert student_jobs(config, prepare(config), config.method, found.served)[0].fingerprint == training.job.fingerprint
