"""Students of stored teachers, as jobs that a test drives itself."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import electra, reviews_job

from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import Config
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs
from raykd.teachers.blocks import TeacherWork, missing_blocks
from raykd.teachers.serving import ServedTeacher, TeacherModel
from raykd.training.events import Event
from raykd.training.loop import train

Taught = tuple[Config, Prepared, list[ServedTeacher]]


def teach(folder: Path, changes: Mapping[str, Any] | None = None) -> Taught:
    """Two teachers of a few steps, their logits stored, no dropout, transfer rows. changes: of the job."""
    tree = override(reviews_job(folder), changes or {})
    for member in (*tree["teachers"], tree["student"]):
        member["model"] = {**member["model"], "config": electra(dropout=0.0)}
    tree = override(tree, {"data.transfer": "train[100:120]", "data.test": "train[80:100]"})
    config = build(override(tree, {"training.steps": 4, "training.eval_every": 2}))
    prepared = prepare(config)
    return config, prepared, train_and_fill(config, prepared)


def train_and_fill(config: Config, prepared: Prepared) -> list[ServedTeacher]:
    """The teachers, trained in this process, all of their folds, with their logits stored."""
    all_served = []
    for teacher, jobs in zip(config.teachers, teacher_jobs(config, prepared).values(), strict=True):
        for job in jobs:
            list(train(job))
        models = [job.result()["model"] for job in jobs]
        all_served.append(served_teacher(config, prepared, teacher, models, "float32"))
        fill_here(config, prepared, teacher, all_served[-1])
    return all_served


def fill_here(config: Config, prepared: Prepared, teacher, served: ServedTeacher) -> None:
    """What the pool's actors do, in this process."""
    splits = {n: (s, prepared.teachers[served.name].splits[n]) for n, s in prepared.splits.items()}
    store = config.store / "logits"
    model = TeacherModel(served)
    model.keep_head(LogitStore.at(store))
    logits = TeacherLogits(store, served.key)
    for block in missing_blocks(TeacherWork(teacher, served, splits), logits, 50):
        rows = model.logits(block.folders, block.positions, block.folds)
        logits.add(block.row_ids, block.input_hashes, rows)


def student(taught: Taught, method: Method, **changes) -> Job:
    config, prepared, served = taught
    job = student_jobs(config, prepared, method, served)[0]
    training = changes.pop("training", {})
    return dataclasses.replace(job, training=job.training.model_copy(update=training), **changes)


def curve(events: Iterable[Event]) -> list[tuple[float, float, float]]:
    points = [values for e in events for _, values in getattr(e, "history", [])]
    return [(p["loss"], p["label"], p.get("distillation", 0.0)) for p in points]


def weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.folder / "generation-1" / "model" / "model.safetensors")
