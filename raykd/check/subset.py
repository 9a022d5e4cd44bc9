"""Trainings and data cut down for a probe: few rows, the same shapes, in a store of their own."""

import dataclasses
from itertools import islice
from pathlib import Path

import datasets
import numpy as np

from raykd.common.row_files import open_rows, save_rows
from raykd.data.batches import batch_order
from raykd.data.encoding import Encoded, id_column, keep_raw
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job, ScoredSplit
from raykd.plan.prepare import Prepared
from raykd.tasks import make_task
from raykd.training.loop import used_rows

ENDLESS = 10**6  # steps of a training that somebody will stop
_MOST_ROWS = 4096  # that are trained on: more of them would go no faster


def endless(job: Job, store: Path, number: int) -> Job:
    """A training on some of the job's rows that does not end by itself. number: of those that run beside it.

    Its teachers' logits are made up: what a student reads takes as long whatever the values are.
    """
    rows = datasets.concatenate_datasets([encoded.open() for encoded in job.train])
    rng = np.random.default_rng(0)
    chosen = (
        np.arange(1 + max(rows.select_columns("example")[:]["example"])) if job.row_subset is None else job.row_subset
    )
    if len(rows) > _MOST_ROWS:
        chosen = np.sort(rng.permutation(chosen)[: max(1, _MOST_ROWS * len(chosen) // len(rows))])
    job = dataclasses.replace(
        job,
        name=f"{job.name}, probe {number}",
        store=store,
        seed=job.seed + 1000 * number,
        training=job.training.model_copy(update={"eval_every": ENDLESS, "select": None}),
        steps=ENDLESS,
        method=job.method.model_copy(update={"generations": 1}),
        row_subset=chosen,
        logits=LogitStore(str(store / "logits")),
        live=False,
        keep=True,
    )
    _make_up_logits(job, rows, used_rows(rows, chosen), rng)
    return job


def short(job: Job, rows: int, share: int) -> Job:
    """A training of two steps, each with an evaluation of so many rows, or fewer: one of `share`."""
    return dataclasses.replace(
        job,
        name=f"{job.name}, 1/{share}",
        seed=job.seed + share,
        steps=2,
        training=job.training.model_copy(update={"eval_every": 1}),
        validation=_scored(job.validation, rows, share, job.store),
        test=_scored(job.test, rows, share, job.store),
    )


def miniature(prepared: Prepared, rows: dict[str, int], store: Path) -> Prepared:
    """The same data and models with so many rows of each split, at most."""
    rng = np.random.default_rng(0)
    chosen = {name: _some(rng, len(split.rows), rows[name]) for name, split in prepared.splits.items()}
    splits = {
        name: dataclasses.replace(
            split,
            rows=_part(split.rows, chosen[name]),
            ids=split.ids[chosen[name]],
            digest=f"{split.digest}-{len(chosen[name])}",
        )
        for name, split in prepared.splits.items()
    }
    raw = {name: keep_raw(split, store) for name, split in splits.items()}
    members = {
        name: dataclasses.replace(
            member, splits={n: _cut(encoded, chosen[n], store) for n, encoded in member.splits.items()}
        )
        for name, member in {**prepared.teachers, "": prepared.student}.items()
    }
    student = members.pop("")
    return dataclasses.replace(prepared, splits=splits, raw=raw, student=student, teachers=members)


def step_tokens(job: Job, steps: int) -> np.ndarray:
    """(steps,) tokens of a training's first steps, with their padding."""
    rows = datasets.concatenate_datasets([encoded.open() for encoded in job.train])
    lengths = np.asarray(rows.select_columns("length")[:]["length"])[used_rows(rows, job.row_subset)]
    size = job.training.batch_size
    order = batch_order(lengths, size, job.seed, job.training.group_by_length)
    return np.array([size * lengths[chosen].max() for chosen in islice(order, steps)])


def _make_up_logits(job: Job, rows: datasets.Dataset, used: np.ndarray, rng: np.random.Generator) -> None:
    task, part = make_task(job.task, job.label_names), rows.select(used)
    shapes = task.shapes(part.select_columns([*task.shape_columns])[:])
    ids = id_column(part, "row_id")
    for teacher in job.teachers:
        theirs = datasets.concatenate_datasets([open_rows(folder) for folder in teacher.rows])
        inputs = id_column(theirs.select(used), "input_hash")
        stored = TeacherLogits(job.logits, teacher.key)
        missing = stored.missing(ids, inputs)
        if len(missing):
            values = [-rng.exponential(size=shape).astype(np.float16) for shape in shapes[missing]]
            stored.add(ids[missing], inputs[missing], values)


def _scored(split: ScoredSplit, rows: int, share: int, store: Path) -> ScoredSplit:
    raw = open_rows(split.raw)
    chosen = _some(np.random.default_rng(0), len(raw), max(1, min(rows, len(raw)) // share))
    folder = store / "data" / f"{split.raw.name}-{len(chosen)}"
    if not folder.exists():
        save_rows(_part(raw, chosen), folder)
    return ScoredSplit(_cut(split.encoded, chosen, store), folder)


def _part(rows: datasets.Dataset, chosen: np.ndarray) -> datasets.Dataset:
    """In memory: else what selects them would be cached as a file beside the rows."""
    return rows.select(chosen, keep_in_memory=True).flatten_indices(keep_in_memory=True)


def _some(rng: np.random.Generator, rows: int, most: int) -> np.ndarray:
    return np.sort(rng.permutation(rows)[:most])


def _cut(encoded: Encoded, chosen: np.ndarray, store: Path) -> Encoded:
    """The encoded rows of these raw ones (ascending positions), which then count from 0."""
    digest = f"{encoded.digest}-{len(chosen)}"
    folder = store / "data" / digest
    if not folder.exists():
        rows = encoded.open()
        example = np.asarray(rows.select_columns("example")[:]["example"])
        kept = np.flatnonzero(np.isin(example, chosen))
        part = _part(rows, kept).remove_columns("example")
        save_rows(part.add_column("example", np.searchsorted(chosen, example[kept])), folder)
    return Encoded(folder, digest)
