"""Where a training's teacher logits come from: the shared store, or (born-again) its own last generation."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from raykd.common.ranks import DistContext
from raykd.data.encoding import id_column
from raykd.data.row_files import open_rows
from raykd.logits import StoredLogits, TeacherKey, TeacherLogits
from raykd.models.loading import folder_digest
from raykd.models.prediction import predict_all
from raykd.plan.job import Job
from raykd.tasks import Task


def open_logits(job: Job, rows: datasets.Dataset) -> StoredLogits | None:
    """The stored logits of this job's rows, found and verified by content; some may still be missing."""
    if not job.method.distils or job.live:
        return None
    hashes = {}  # of teachers that are fed the same they are one array: 16 bytes a row, in every training's process
    for folders in {teacher.rows for teacher in job.teachers}:
        columns = [id_column(open_rows(folder), "input_hash") for folder in folders]
        hashes[folders] = np.concatenate(columns)
    inputs = [hashes[teacher.rows] for teacher in job.teachers]
    opened = [TeacherLogits(job.logits, t.key) for t in job.teachers]
    return StoredLogits(opened, id_column(rows, "row_id"), inputs, partial=True)


def self_logits(
    job: Job,
    folder: Path,
    model: torch.nn.Module,
    task: Task,
    processor: Any,
    rows: datasets.Dataset,
    ranks: DistContext,
    dtype: str,
) -> StoredLogits:
    """Born-again: this generation's logits of its training rows, in a store that goes with the run."""
    key = TeacherKey(
        folder_digest(folder / "model"),
        "own",
        json.dumps(task.preprocessing(), sort_keys=True),
        dtype,
        metadata={"name": folder.name},
    )
    store = job.folder / "generations"
    mine = TeacherLogits(store, key)
    ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
    missing = mine.missing(ids, inputs)[ranks.rank :: ranks.world]
    ranks.barrier()  # every worker has seen what is missing before one adds to it
    logits = predict_all(model, task, rows.select(missing), processor, DistContext(device=ranks.device), dtype)
    if len(missing):
        mine.add(ids[missing], inputs[missing], logits)
    ranks.barrier()
    return StoredLogits([TeacherLogits(store, key)], ids, [inputs])
