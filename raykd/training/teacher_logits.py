"""Where a training's teacher logits come from: the shared store, or (born-again) its own last generation."""

import json
from pathlib import Path

import datasets
import numpy as np
import torch

from raykd.common.hashing import file_digest
from raykd.common.row_files import open_rows
from raykd.common.shared_files import seen
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, StoredLogits, TeacherKey, TeacherLogits
from raykd.logits.heads import write_head
from raykd.models.inputs import InputRows
from raykd.models.kept_logits import linear_head
from raykd.models.prediction import predict_rows
from raykd.plan.job import Job
from raykd.training.checkpoint import BEST
from raykd.training.setup import Setup


def open_logits(job: Job, rows: datasets.Dataset) -> StoredLogits | None:
    """The stored logits of this job's rows, looked up and verified by content. Some can still be missing."""
    if not job.method.distils or job.live:
        return None
    hashes = {}  # teachers with the same inputs share one array: 16 bytes a row, in every training's process
    for folders in {teacher.rows for teacher in job.teachers}:
        columns = [id_column(open_rows(folder), "input_hash") for folder in folders]
        hashes[folders] = np.concatenate(columns)
    inputs = [hashes[teacher.rows] for teacher in job.teachers]
    opened = [TeacherLogits(job.logits, t.key) for t in job.teachers]
    return StoredLogits(
        opened, id_column(rows, "row_id"), inputs, partial=True, widths_differ=job.keep.form == "hidden"
    )


def self_logits(setup: Setup, folder: Path, model: torch.nn.Module) -> StoredLogits:
    """Born-again: this generation's logits of its training rows, in a store that belongs to the run.

    folder: of this generation.
    """
    job, task, rows, context, dtype = setup.job, setup.task, setup.rows, setup.context, setup.dtype
    # Another worker's node may not see the first one's files yet, so the first one's digest and missing rows are used.
    # A trial saves no model, so a generation is identified by its best weights.
    weights = context.all_gather(file_digest([folder / BEST]) if context.is_main else "")[0]
    key = TeacherKey(
        weights,
        "own",
        json.dumps(task.identity(), sort_keys=True),
        job.keep.in_key(dtype),
        metadata={"name": folder.name},
    )
    store = job.folder / "generations"
    mine = TeacherLogits(store, key)
    if job.keep.form == "hidden" and context.is_main:
        write_head(LogitStore.at(store), key, linear_head(model, folder.name))
    ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
    all_missing = context.all_gather(mine.missing(ids, inputs) if context.is_main else None)[0]
    missing = all_missing[context.rank :: context.world]

    def compute() -> None:
        if len(missing):
            logits = predict_rows(setup.inference(model, job.keep), InputRows(rows, task), missing)
            mine.add(ids[missing], inputs[missing], logits)

    context.together(compute, "the logits of its own last generation")
    stored = StoredLogits([TeacherLogits(store, key)], ids, [inputs], partial=True)

    def visible() -> bool:
        stored.refresh(always=True)
        return stored.complete

    seen(store / key.fingerprint, visible)
    return stored if stored.complete else StoredLogits([TeacherLogits(store, key)], ids, [inputs])
