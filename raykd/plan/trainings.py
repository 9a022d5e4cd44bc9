"""Lists the trainings of a config: teachers and their folds, baselines, students."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raykd.common.errors import ConfigError
from raykd.config.methods import Method
from raykd.config.models import LoraConfig
from raykd.config.schema import Config, TeacherConfig
from raykd.data.columns import content_columns
from raykd.data.folds import held_out, subset
from raykd.logits import LogitStore
from raykd.logits.keep import ALL, Keep
from raykd.models.opened import open_model
from raykd.models.prediction import BATCH_TOKENS
from raykd.plan.job import Job, TeacherRef, settings_key, shown_source
from raykd.plan.own_functions import code_of
from raykd.plan.prepare import Member, Prepared
from raykd.teachers.serving import ServedTeacher

FINETUNE = Method(type="finetune")


def teacher_jobs(config: Config, prepared: Prepared) -> dict[str, list[Job]]:
    """The trainings of each teacher with a recipe: one, or one per fold."""
    jobs: dict[str, list[Job]] = {}
    for teacher in config.teachers:
        if teacher.recipe is None:
            continue
        key = f"teachers.{teacher.name}"
        train = prepared.splits["train"]
        rows = subset(train, teacher)
        parts = [np.setdiff1d(rows, out) for out in held_out(train, teacher, prepared.task)] or [rows]
        for fold, part in enumerate(parts):
            name = teacher.name if len(parts) == 1 else f"{teacher.name} fold {fold + 1}"
            jobs.setdefault(teacher.name, []).append(
                _job(
                    config,
                    prepared,
                    prepared.teachers[teacher.name],
                    name=name,
                    key=key,
                    seed=teacher.recipe.seed,
                    method=FINETUNE,
                    changes=teacher.recipe.training,
                    row_subset=part if len(part) < len(train.rows) else None,
                    lora=teacher.recipe.lora,
                )
            )
    _refuse_equal(jobs)
    return jobs


def _refuse_equal(jobs: dict[str, list[Job]]) -> None:
    """Raise ConfigError if two teachers have the same training, because then they are the same model."""
    known: dict[tuple[str, ...], str] = {}
    for name, trainings in jobs.items():
        identity = tuple(job.fingerprint for job in trainings)
        if identity in known:
            reason = f"its training is the same as teacher {known[identity]}'s, so the same model would count twice"
            seed = trainings[0].seed
            raise ConfigError(f"teachers.{name}.recipe.seed", seed, reason, "Give it a different seed")
        known[identity] = name


def same_training(job: Job, teachers: Mapping[str, Sequence[Job]]) -> str | None:
    """The teacher that is the same training as this one, and so the same model; None if there is none.

    teachers: the trainings of each. A teacher with folds is the mean of several models.
    """
    alone = {jobs[0].fingerprint: name for name, jobs in teachers.items() if len(jobs) == 1}
    return alone.get(job.fingerprint)


def student_jobs(
    config: Config, prepared: Prepared, method: Method, teachers: Sequence[ServedTeacher], name: str = "student"
) -> list[Job]:
    """The trainings of the student with one method, one per seed. With `finetune` they are the baseline."""
    refs = []
    for served in teachers if method.distils else ():
        if method.teacher in (None, served.name):
            names = _training_splits(prepared, method)
            member, live = prepared.teachers[served.name], None
            if config.logits.mode == "live":
                parts = [(prepared.splits[n].ids, member.splits[n].open()) for n in names]
                live = np.concatenate([served.folds_of_rows(ids, rows) for ids, rows in parts])
            folders = tuple(member.splits[n].folder for n in names)
            refs.append(TeacherRef(served.key, folders, None if live is None else served, live))
    return [
        _job(
            config,
            prepared,
            prepared.student,
            name=f"{name} seed {seed}",
            key="student",
            seed=seed,
            method=method,
            changes=config.student.training,
            refs=tuple(refs),
            lora=config.student.lora,
        )
        for seed in config.student.seeds
    ]


def _training_splits(prepared: Prepared, method: Method) -> list[str]:
    """Transfer rows have no labels, so only trainings with teachers use them."""
    return ["train", "transfer"] if method.distils and "transfer" in prepared.splits else ["train"]


def _job(
    config: Config,
    prepared: Prepared,
    member: Member,
    *,
    name: str,
    key: str,
    seed: int,
    method: Method,
    changes: dict[str, Any],
    row_subset: np.ndarray | None = None,
    refs: tuple[TeacherRef, ...] = (),
    lora: LoraConfig | None = None,
) -> Job:
    training = config.training_of(changes, f"{settings_key(key)}.training")
    rows = sum(len(e.open()) for n, e in member.splits.items() if n in ("train", "transfer"))
    return Job(
        name=name,
        key=key,
        store=config.store,
        task=member.model.task.settings,
        label_names=prepared.task.label_names,
        model=member.model.spec,
        model_digest=member.model.start_digest,
        seed=seed,
        training=training,
        steps=prepared.steps(training, rows),
        method=method,
        train=tuple(member.splits[n] for n in _training_splits(prepared, method)),
        validation=prepared.scored(member, "validation"),
        test=prepared.scored(member, "test"),
        row_subset=row_subset,
        teachers=refs,
        logits=LogitStore.of(config),
        keep=Keep.of(config, prepared.task) if method.distils else ALL,
        lora=lora,
        code=member.model.task.settings.code | code_of(method, prepared.code),
        live=config.logits.mode == "live" and bool(refs),
        augment=config.data.augment,
        raw_train=tuple(prepared.raw[n] for n in _training_splits(prepared, method)) if config.data.augment else (),
        workers=config.student.workers if key == "student" else 1,
        metadata={
            "title": f"{config.name}: {name}",
            "data": f"{shown_source(config.data.source)} ({config.data.train})",
            "teachers": [ref.name for ref in refs],
            "columns": {role: role for role in content_columns(prepared.splits["train"].rows, prepared.task)}
            | config.data.columns,
        },
    )


def _preprocessing(prepared: Prepared, member: Member) -> str:
    """How rows become a teacher's inputs, for the key of its logits: of a language model, otherwise than texts do."""
    task, columns = member.model.task, prepared.splits["train"].rows.column_names
    known = repr(sorted(task.identity().items()))
    if not task.predicts_tokens:
        return known
    encoding = member.model.processor_facts.encoding
    own = task.encoding_of(encoding, columns)
    as_text = "messages" not in columns and own == task.encoding_of(encoding, ["text"])
    return known if as_text else f"{known} {own}"


def served_teacher(
    config: Config, prepared: Prepared, teacher: TeacherConfig, trained: Sequence[str], dtype: str
) -> ServedTeacher:
    """The teacher, ready to serve.

    trained: folders of its trained models; empty for a given checkpoint.
    dtype: that it computes in, "float32" or "bfloat16", which is part of its logits' key.
    """
    member = prepared.teachers[teacher.name]
    key = f"teachers.{teacher.name}.model"
    models = [member.model]
    if trained:
        specs = [teacher.model.trained(folder) for folder in trained]
        models = [open_model(spec, member.model.task, key) for spec in specs]
    train = prepared.splits["train"]
    unseen = held_out(train, teacher, prepared.task) if teacher.recipe else []
    return ServedTeacher(
        name=teacher.name,
        task=member.model.task.settings,
        label_names=prepared.task.label_names,
        models=tuple(m.spec for m in models),
        digests=tuple(m.logits_digest for m in models if m.folder),
        processor=member.model.processor_digest,
        preprocessing=_preprocessing(prepared, member),
        dtype=dtype,
        batch_tokens=BATCH_TOKENS if config.logits.batch_tokens == "auto" else config.logits.batch_tokens,
        search_batch=config.logits.batch_tokens == "auto",
        compiled=config.logits.compile,
        fold_ids=tuple(np.unique(train.ids[rows], axis=0) for rows in unseen),
        classes=member.classes,
        keep=Keep.of(config, prepared.task),
    )
