"""Each task that is trained on text, by every method that it has, from stored logits: the same checks for all."""

import dataclasses

import numpy as np
import pytest
import torch
from taught import curve, train_and_fill
from tiny import capitals_job, electra, emotions_job, plots_job, similarities_job
from two_workers import train_by_two
from unreadable import UNREADABLE, EvaluationReached, TransformersReads, compute_on_it

from raykd.config.load import build, override
from raykd.config.methods import PRESETS
from raykd.experiment.disagreement import disagreement
from raykd.experiment.scoring import score_teachers, stored_logits
from raykd.logits import LogitStore
from raykd.models.inputs import input_columns
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs
from raykd.teachers.requests import RowsAnswer, pack, unpack
from raykd.teachers.serving import TeacherModel
from raykd.training.events import from_json
from raykd.training.loop import train

JOBS = {"emotions": emotions_job, "similarities": similarities_job, "plots": plots_job, "capitals": capitals_job}
# The methods that a task does not have.
UNUSED: dict[str, set[str]] = {
    "emotions": set(),
    "similarities": {"label_smoothing"},
    "plots": set(),
    "capitals": set(),
}


@pytest.fixture(scope="module", params=JOBS)
def taught(request, tmp_path_factory):
    """A plain teacher and one of two folds, without dropout, and their stored logits."""
    tree = JOBS[request.param](tmp_path_factory.mktemp(request.param), baseline=False)
    for member in (*tree["teachers"], tree["student"]) if request.param != "capitals" else ():
        # Wide first weights: a toy's scores of two choices are else alike to the last digit.
        still = electra(dropout=0.0, summary_last_dropout=0.0, initializer_range=0.3)
        member["model"] = {**member["model"], "config": still}
    if request.param == "capitals":  # hidden states are of one model, and a teacher here is of two folds
        tree = override(tree, {"logits.keep": "all"})
    tree = override(tree, {"method.type": "weighted", "method.W": 0.5, "teachers.b.folds": 2})
    config = build(override(tree, {"data.train": "train[:20]", "data.transfer": "train[20:24]"}))
    prepared = prepare(config)
    return request.param, tree, config, prepared, train_and_fill(config, prepared)


@pytest.mark.parametrize("method", PRESETS)
def test_every_method_trains(taught, method):
    name, tree, _, prepared, served = taught
    if method in UNUSED[name]:
        pytest.skip("refused: see the tests of the task")
    config = build(override(tree, {"method.type": method, "data.train": "train[:20]", "data.transfer": "train[20:24]"}))
    job = student_jobs(config, prepared, config.method, served)[0]
    points = curve(train(job))
    assert len(points) == 6 * config.method.generations
    assert np.isfinite(points).all()
    assert all(point[2] > 0 for point in points) == config.method.distils
    scores = job.result()["generations"][0]["test"]
    assert scores.keys() == set(prepared.task.metric_names)
    assert np.isfinite(list(scores.values())).all()


@pytest.mark.slow
def test_two_workers_train_on_stored_rows_as_one(taught, tmp_path):
    *_, config, prepared, served = taught
    job = dataclasses.replace(student_jobs(config, prepared, config.method, served)[0], seed=5)
    one = curve(train(job))
    two = dataclasses.replace(job, workers=2)
    train_by_two([two], tmp_path)
    events = [from_json(line) for line in (two.folder / "events-0.jsonl").open()]
    np.testing.assert_allclose(curve(events), one, rtol=1e-4, atol=1e-5)
    a, b = job.result()["generations"][0]["test"], two.result()["generations"][0]["test"]
    assert a == pytest.approx(b, abs=1e-3)


def test_rows_over_the_wire_have_the_stored_logits(taught):
    """What a live teacher is sent and answers."""
    *_, config, prepared, served = taught
    rows = input_columns(prepared.teachers["b"].splits["train"].open(), prepared.task)
    folds = served[1].folds_of_rows(prepared.splits["train"].ids, prepared.teachers["b"].splits["train"].open())
    assert set(folds.tolist()) == {0, 1}
    answer = TeacherModel(served[1]).answer(unpack(pack(rows[:], folds)), folds)
    shapes = np.array([row.shape for row in answer])
    found = RowsAnswer(np.concatenate([row.ravel() for row in answer]), shapes, 0.0).rows()
    stored = stored_logits(prepared, served, "train", LogitStore.at(config.store / "logits"))
    for position, row in enumerate(found):
        np.testing.assert_allclose(row.astype(float), stored.view(1, position).astype(float), atol=5e-3)


def test_teachers_and_ensemble_are_scored_from_the_store(taught):
    *_, config, prepared, served = taught
    store = LogitStore.at(config.store / "logits")
    for evaluations in score_teachers(prepared, served, store):
        for evaluation in evaluations.values():
            assert evaluation.scores.mean() == pytest.approx(evaluation.metrics[prepared.task.primary_metric])
    shares = disagreement(config, prepared, served)
    assert 0 <= shares.all_wrong <= min(1 - right for right in shares.right)
    assert shares.changed + shares.all_wrong <= 1


@pytest.mark.parametrize("method", PRESETS)
def test_no_step_reads_from_its_device(taught, method, monkeypatch):
    """Nor does it mix that with the host's tensors. Here for each task; on a GPU torch itself watches: tests/gpu."""
    name, tree, _, prepared, served = taught
    if method in UNUSED[name]:
        pytest.skip("refused: see the tests of the task")
    steps = {"steps": 4, "eval_every": 4, "accumulation": 2}
    config = build(override(tree, {"method.type": method, "training": tree["training"] | steps}))
    job = dataclasses.replace(student_jobs(config, prepared, config.method, served)[0], seed=9)
    compute_on_it(monkeypatch)
    with TransformersReads(), pytest.raises(EvaluationReached):
        list(train(job, UNREADABLE))


def test_no_teacher_reads_from_its_device(taught, monkeypatch):
    *_, prepared, served = taught
    rows = input_columns(prepared.teachers["b"].splits["train"].open(), prepared.task)[np.arange(8)]
    folds = np.array([0, 1] * 4)
    expected = [row.shape for row in TeacherModel(served[1]).answer(rows, folds)]
    compute_on_it(monkeypatch)
    with TransformersReads():
        found = TeacherModel(served[1]).answer(rows, folds)
    assert [row.shape for row in found] == expected
    assert all((row == 1).all() for row in found), "it has computed there"


def test_what_reads_from_the_device_is_seen(monkeypatch):
    compute_on_it(monkeypatch)
    loss = torch.ones(3, device=UNREADABLE.device)
    for mistake in (lambda: loss.sum().item(), loss.nonzero, lambda: loss + torch.ones(3), lambda: bool(loss.all())):
        with TransformersReads(), pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            mistake()
