"""A training that does not end by itself, for measuring: on a sample of rows, in a separate store."""

import dataclasses
from pathlib import Path

import datasets
import numpy as np

from raykd.common.row_files import open_rows
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.tasks import make_task
from raykd.training.rows import used_rows

ENDLESS = 10**6  # steps of a training that is stopped from outside
_MAX_ROWS = 4096  # rows to train on; more would not change the speed


def endless_job(job: Job, store: Path, number: int, logits: LogitStore | None = None) -> Job:
    """A training on a sample of the job's rows that does not end by itself.

    store: an empty folder that all nodes share.
    number: distinguishes the trainings that run at the same time.
    logits: of its teachers; None: random ones in `store`, since the time to read them does not depend on their values.
    """
    rows = datasets.concatenate_datasets([encoded.open() for encoded in job.train])
    rng = np.random.default_rng(0)
    chosen = (
        np.arange(1 + max(rows.select_columns("example")[:]["example"])) if job.row_subset is None else job.row_subset
    )
    if len(rows) > _MAX_ROWS:
        chosen = np.sort(rng.permutation(chosen)[: max(1, _MAX_ROWS * len(chosen) // len(rows))])
    job = dataclasses.replace(
        job,
        name=f"{job.name}, probe {number}",
        store=store,
        seed=job.seed + 1000 * number,
        training=job.training.model_copy(update={"eval_every": ENDLESS, "select": None}),
        steps=ENDLESS,
        method=job.method.model_copy(update={"generations": 1}),
        row_subset=chosen,
        logits=logits or LogitStore(str(store / "logits")),
        live=False,
        keep_model=True,
    )
    if logits is None:
        _make_up_logits(job, rows, used_rows(rows, chosen), rng)
    return job


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
