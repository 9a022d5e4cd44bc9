"""A task of the tests alone, whose rows differ in their number of decisions: stored, live, two workers, evaluated."""

import dataclasses
import shutil
import sys

import every_token
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from every_token import EVERY_TOKEN
from taught import curve, fill_here
from tiny import WORDS, electra, reviews_job
from two_workers import train_by_two

from raykd.common.ranks import DistContext
from raykd.config.load import build, override
from raykd.experiment.scoring import score_teachers, stored_logits
from raykd.logits import LogitStore
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs
from raykd.teachers.actor import TeacherActor
from raykd.teachers.live import directory_here
from raykd.training.access import TeacherAccess
from raykd.training.events import from_json
from raykd.training.loop import train


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Two teachers without dropout, their stored logits, a student's job, its losses and its result."""
    folder = tmp_path_factory.mktemp("every_token")
    tree = override(reviews_job(folder, baseline=False), {"method.type": "weighted", "method.W": 0.5})
    texts = pq.read_table(folder / "data" / "train.parquet")["text"].to_pylist()
    labels = [[int(word in WORDS[:4]) for word in text.split()] for text in texts]
    pq.write_table(pa.table({"text": texts, "label": labels}), folder / "data" / "train.parquet")
    for member in (*tree["teachers"], tree["student"]):
        member["model"] = {**member["model"], "config": electra(dropout=0.0)}
    config = build(tree)
    config = config.model_copy(update={"task": config.task.model_copy(update={"type": EVERY_TOKEN})})
    prepared, served = prepare(config), []
    for teacher, jobs in zip(config.teachers, teacher_jobs(config, prepared).values(), strict=True):
        list(train(jobs[0]))
        served.append(served_teacher(config, prepared, teacher, [jobs[0].result()["model"]], "float32"))
        fill_here(config, prepared, teacher, served[-1])
    job = student_jobs(config, prepared, config.method, served)[0]
    return config, prepared, served, job, curve(train(job)), job.result()


def test_stored(taught):
    config, prepared, served, _, losses, _ = taught
    stored = stored_logits(prepared, served, "train", LogitStore.at(config.store / "logits"))
    shapes = [stored.view(0, row).shape for row in range(len(stored))]
    lengths = prepared.student.splits["train"].open()["length"][:]
    assert shapes == [(length, 2) for length in lengths]
    assert len(set(lengths)) > 3
    assert len(losses) == 10


def test_two_workers_train_as_one(taught, tmp_path):
    *_, job, losses, result = taught
    two = dataclasses.replace(job, workers=2)
    train_by_two([two], tmp_path)
    events = [from_json(line) for line in (two.folder / "events-0.jsonl").open()]
    np.testing.assert_allclose(curve(events), losses, atol=1e-5)
    a, b = result["generations"][0]["test"], two.result()["generations"][0]["test"]
    assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.usefixtures("ray_cluster")
def test_live_logits_teach_the_same_as_stored_ones(taught):
    config, _, served, job, losses, _ = taught
    ray.cloudpickle.register_pickle_by_value(sys.modules[every_token.__name__])  # the actors cannot import it
    directory = directory_here()
    actors = [TeacherActor.options(num_cpus=0).remote(LogitStore.of(config), 1, 0) for _ in served]
    ray.get([actor.load.remote(one, set()) for one, actor in zip(served, actors, strict=True)])
    for one, actor in zip(served, actors, strict=True):
        ray.get(directory.put.remote(one.key.fingerprint, [actor]))
    folds = np.full(sum(len(encoded.open()) for encoded in job.train), -1)
    teachers = [dataclasses.replace(t, served=s, folds=folds) for t, s in zip(job.teachers, served, strict=True)]
    live = dataclasses.replace(job, live=True, teachers=tuple(teachers))
    access = TeacherAccess(directory=directory, in_flight=2, timeout_s=300)
    shutil.rmtree(live.folder)  # it has the identity of the stored one, whose result would be reused
    np.testing.assert_allclose(curve(train(live, DistContext(), lambda: False, access)), losses, atol=2e-3)
    for actor in actors:
        ray.kill(actor)


def test_evaluated(taught):
    config, prepared, served, *_ = taught
    *teachers, ensemble = score_teachers(prepared, served, LogitStore.at(config.store / "logits"))
    for scored in (*teachers, ensemble):
        assert 0.5 < scored["test"].metrics["accuracy"] <= 1
        assert scored["test"].scores.mean() == scored["test"].metrics["accuracy"]
        assert len(scored["test"].scores) == len(prepared.splits["test"].rows)
