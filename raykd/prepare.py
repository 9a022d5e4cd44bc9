"""Everything that is known before anything is trained: checked, and encoded once."""

import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raykd.config import Config, ModelConfig, TeacherConfig, TrainingConfig
from raykd.data import Split, load_splits
from raykd.encoding import Encoded, encode, id_column, keep_raw
from raykd.errors import ConfigError
from raykd.job import ScoredSplit
from raykd.models import (
    is_fine_tuned,
    load_config,
    load_processor,
    model_digest,
    model_folder,
    processor_digest,
)
from raykd.tasks import Task, make_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A teacher or the student: its model's identity, and the splits as it is fed them."""

    model: ModelConfig
    digest: str
    processor: Any
    processor_digest: str
    splits: dict[str, Encoded] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """The data and the models of an experiment, before the first training."""

    task: Task
    splits: dict[str, Split]
    raw: dict[str, Path]
    student: Member
    teachers: dict[str, Member]

    def scored(self, member: Member, split: str) -> ScoredSplit:
        return ScoredSplit(member.splits[split], self.raw[split])

    def steps(self, training: TrainingConfig, batch_rows: int) -> int:
        """Optimizer steps. Epochs count train and transfer rows for everyone: teachers get as many steps."""
        if training.steps is not None:
            return training.steps
        assert training.epochs is not None
        return max(1, math.ceil(training.epochs * batch_rows / training.batch_size))


def prepare(config: Config) -> Prepared:
    """Load, check and encode. Raises ConfigError for whatever can be known to fail."""
    task = make_task(config.task, config.task.labels or ())
    check_training(config, task)
    splits = load_splits(config, task)
    check_teachers(config, task)
    student = _member(config, config.student.model, task, "student.model", splits)
    teachers = {}
    for i, teacher in enumerate(config.teachers):
        teachers[teacher.name] = _member(config, teacher.model, task, f"teachers.{i}.model", splits)
        if task.ragged:
            check_alignment(teacher.name, teachers[teacher.name], student)
    return Prepared(task, splits, {n: keep_raw(s, config.store) for n, s in splits.items()}, student, teachers)


def _member(config: Config, model: ModelConfig, task: Task, key: str, splits: dict[str, Split]) -> Member:
    processor = load_processor(model, task, key)
    encoded = {n: encode(s, task, processor, config.store, config.data.workers) for n, s in splits.items()}
    return Member(model, model_digest(model, key), processor, processor_digest(processor), encoded)


def check_training(config: Config, task: Task) -> None:
    """What the schema alone cannot see of the training settings."""
    sections = {"training": (config.training, 1)}
    sections["student.training"] = (
        config.training_of(config.student.training, "student.training"),
        config.student.workers,
    )
    for t in config.teachers:
        if t.recipe:
            key = f"teachers.{t.name}.recipe.training"
            sections[key] = (config.training_of(t.recipe.training, key), 1)
    for key, (training, workers) in sections.items():
        if training.select is not None and training.select not in task.metric_names:
            raise ConfigError(
                f"{key}.select",
                training.select,
                "the task has no such metric",
                f"Choose one of {', '.join(task.metric_names)}",
            )
        if training.batch_size < workers * training.accumulation:
            raise ConfigError(
                f"{key}.batch_size",
                training.batch_size,
                f"{workers} workers in {training.accumulation} accumulations leave some without a row",
                f"Use at least {workers * training.accumulation}",
            )


def check_teachers(config: Config, task: Task) -> None:
    """Every teacher is a fine-tuned checkpoint with the task's labels in their order, or has a recipe."""
    for i, teacher in enumerate(config.teachers):
        key = f"teachers.{i}.model"
        if teacher.recipe is None:
            if not is_fine_tuned(teacher.model, task, key):
                raise ConfigError(
                    key,
                    teacher.model.pretrained or teacher.model.config,
                    f"it is neither a checkpoint fine-tuned for {config.task.type} nor has it a recipe",
                    f"Give a fine-tuned checkpoint, or add `recipe: {{}}` to train {teacher.name} here",
                )
            check_labels(teacher, task, key)
        check_room(teacher.model, config, task, key)
    check_room(config.student.model, config, task, "student.model")
    if config.method.weighting == "correctness" and (len(config.teachers) == 1 or config.method.teacher):
        log.warning("method.type: with one teacher, weighted distillation is plain KD: W has nothing to act on")


def check_room(model: ModelConfig, config: Config, task: Task, key: str) -> None:
    """A row of max_length tokens must have a place in the model for each."""
    places = getattr(load_config(model, task, key), "max_position_embeddings", None)
    if task.processor == "tokenizer" and places and config.task.max_length and config.task.max_length > places:
        raise ConfigError(
            "task.max_length", config.task.max_length, f"{key} has {places} positions", f"Use at most {places}"
        )


def check_labels(teacher: TeacherConfig, task: Task, key: str) -> None:
    if not task.label_names:
        return
    folder = model_folder(teacher.model, key)
    assert folder is not None
    saved = json.loads((folder / "config.json").read_text())
    names = {int(i): n for i, n in (saved.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()}
    theirs, ours = [names[i] for i in sorted(names)], list(task.label_names)
    if len(theirs) != len(ours):
        raise ConfigError(
            key,
            teacher.model.pretrained,
            f"it has {len(theirs)} labels ({', '.join(theirs)}), the task {len(ours)} ({', '.join(ours)})",
            "Use a teacher of this task, or mend task.labels",
        )
    generic = all(n == f"LABEL_{i}" for i, n in enumerate(theirs)) or all(n == str(i) for i, n in enumerate(ours))
    if not generic and [n.lower() for n in theirs] != [n.lower() for n in ours]:
        what = "another order of labels" if {*map(str.lower, theirs)} == {*map(str.lower, ours)} else "other labels"
        raise ConfigError(
            key,
            teacher.model.pretrained,
            f"it has {what} ({', '.join(theirs)}) than the task ({', '.join(ours)})",
            "Set task.labels in the teachers' order, or use another teacher",
        )


def check_alignment(name: str, teacher: Member, student: Member) -> None:
    """Decisions over positions only mean the same if teacher and student cut text into the same tokens."""
    if teacher.processor_digest == student.processor_digest:
        return
    for split, theirs in teacher.splits.items():
        a, b = theirs.open(), student.splits[split].open()
        same = len(a) == len(b) and np.array_equal(id_column(a, "row_id"), id_column(b, "row_id"))
        if not same or any(a[c][:] != b[c][:] for c in ("length", "context_start", "token_starts", "token_ends")):
            raise ConfigError(
                f"teachers.{name}.model",
                teacher.model.pretrained,
                "its tokenizer cuts the text into other tokens than the student's, so that their "
                "answer positions would not line up",
                "Use a teacher and a student of one tokenizer",
            )
