"""A training that does not end by itself, for measuring: on a sample of rows, in a separate store."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np

from raykd.common.output_files import LOGITS
from raykd.logits import LogitStore
from raykd.plan.job import Job
from raykd.training.made_up import make_up_logits, shapes_of
from raykd.training.rows import used_rows

ENDLESS = 10**6  # steps of a training that is stopped from outside
# Rows to train on, and numbers that are made up for all of their decisions (64 MiB); more would not change the speed.
_MAX_ROWS, _MAX_NUMBERS = 4096, 2**25


def endless_job(
    job: Job, store: Path, number: int, logits: LogitStore | None = None, states: Mapping[str, int] | None = None
) -> Job:
    """A training on a sample of the job's rows that does not end by itself.

    store: an empty folder that all nodes share.
    number: distinguishes the trainings that run at the same time.
    logits: of its teachers; None: random ones in `store`, since the time to read them does not depend on their values.
    states: for random hidden states, the size of each teacher's, by name.
    """
    rows = datasets.concatenate_datasets([encoded.open() for encoded in job.train])
    rng = np.random.default_rng(0)
    chosen = (
        np.arange(1 + max(rows.select_columns("example")[:]["example"])) if job.row_subset is None else job.row_subset
    )
    most, states = _MAX_ROWS, states or {}
    if logits is None and job.teachers:
        shapes = shapes_of(job, rows).astype(np.int64)
        each = job.keep.numbers(0, max(states.values(), default=0)) if job.keep.packed else shapes[:, 1]
        numbers = shapes[:, 0] * each
        most = min(most, max(job.training.batch_size, int(_MAX_NUMBERS / max(1, numbers.mean()))))
    if len(rows) > most:
        chosen = np.sort(rng.permutation(chosen)[: max(1, most * len(chosen) // len(rows))])
    job = dataclasses.replace(
        job,
        name=f"{job.name}, probe {number}",
        store=store,
        seed=job.seed + 1000 * number,
        training=job.training.model_copy(update={"eval_every": ENDLESS, "select": None}),
        steps=ENDLESS,
        method=job.method.model_copy(update={"generations": 1}),
        row_subset=chosen,
        logits=logits or LogitStore(str(store / LOGITS)),
        live=False,
        keep_model=True,
    )
    if logits is None:
        make_up_logits(job, rows, used_rows(rows, chosen), states, rng)
    return job
