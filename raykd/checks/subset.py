"""Small versions of trainings and data, for measuring speeds: fewer rows of the same shapes, in a separate store."""

import dataclasses
from itertools import islice
from pathlib import Path

import datasets
import numpy as np

from raykd.common.row_files import open_rows, save_rows
from raykd.data.batches import batch_order
from raykd.data.encoding import Encoded, keep_raw
from raykd.plan.job import Job, ScoredSplit
from raykd.plan.prepare import Prepared
from raykd.training.rows import used_rows


def short_job(job: Job, rows: int, share: int) -> Job:
    """A training of two steps, each with an evaluation. It evaluates at most `rows` rows, divided by `share`.

    It generates no texts, which would count as part of what a row takes to score.
    """
    return dataclasses.replace(
        job,
        name=f"{job.name}, 1/{share}",
        seed=job.seed + share,
        task=job.task.model_copy(update={"generate": None}),
        steps=2,
        training=job.training.model_copy(update={"eval_every": 1}),
        validation=_scored(job.validation, rows, share, job.store),
        test=_scored(job.test, rows, share, job.store),
    )


def subset(prepared: Prepared, rows: dict[str, int], store: Path) -> Prepared:
    """The same data and models with at most `rows[name]` rows of each split."""
    rng = np.random.default_rng(0)
    chosen = {name: _sample(rng, len(split.rows), rows[name]) for name, split in prepared.splits.items()}
    splits = {
        name: dataclasses.replace(
            split,
            rows=_select(split.rows, chosen[name]),
            ids=split.ids[chosen[name]],
            digest=f"{split.digest}-{len(chosen[name])}",
            groups=split.groups and tuple(split.groups[i] for i in chosen[name]),
        )
        for name, split in prepared.splits.items()
    }
    raw = {name: keep_raw(split, store) for name, split in splits.items()}
    members = {
        name: dataclasses.replace(
            member, splits={n: _encoded_subset(encoded, chosen[n], store) for n, encoded in member.splits.items()}
        )
        for name, member in {**prepared.teachers, "": prepared.student}.items()
    }
    student = members.pop("")
    return dataclasses.replace(prepared, splits=splits, raw=raw, student=student, teachers=members)


def step_tokens(job: Job, steps: int) -> np.ndarray:
    """(steps,) tokens of each of a training's first steps, including padding."""
    rows = datasets.concatenate_datasets([encoded.open() for encoded in job.train])
    lengths = np.asarray(rows.select_columns("length")[:]["length"])[used_rows(rows, job.row_subset)]
    size = job.training.batch_size
    order = batch_order(lengths, size, job.seed, job.training.group_by_length)
    return np.array([size * lengths[chosen].max() for chosen in islice(order, steps)])


def _scored(split: ScoredSplit, rows: int, share: int, store: Path) -> ScoredSplit:
    raw = open_rows(split.raw)
    chosen = _sample(np.random.default_rng(0), len(raw), max(1, min(rows, len(raw)) // share))
    folder = store / "data" / f"{split.raw.name}-{len(chosen)}"
    if not folder.exists():
        save_rows(_select(raw, chosen), folder)
    return ScoredSplit(_encoded_subset(split.encoded, chosen, store), folder)


def _select(rows: datasets.Dataset, chosen: np.ndarray) -> datasets.Dataset:
    """The rows at these positions, in memory: otherwise `datasets` would write an index file next to the rows."""
    return rows.select(chosen, keep_in_memory=True).flatten_indices(keep_in_memory=True)


def _sample(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """(size,) ascending random positions, or all if there are fewer."""
    return np.sort(rng.permutation(rows)[:size])


def _encoded_subset(encoded: Encoded, chosen: np.ndarray, store: Path) -> Encoded:
    """The encoded rows of the raw rows at these ascending positions, which are numbered from 0 again."""
    digest = f"{encoded.digest}-{len(chosen)}"
    folder = store / "data" / digest
    if not folder.exists():
        rows = encoded.open()
        example = np.asarray(rows.select_columns("example")[:]["example"])
        kept = np.flatnonzero(np.isin(example, chosen))
        part = _select(rows, kept).remove_columns("example")
        save_rows(part.add_column("example", np.searchsorted(chosen, example[kept])), folder)
    return Encoded(folder, digest)
