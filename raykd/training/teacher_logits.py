"""Where a training's teacher logits come from: the shared store, or (born-again) its own last generation."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from raykd.common.hashing import file_digest
from raykd.common.ranks import DistContext
from raykd.common.row_files import open_rows
from raykd.common.shared_files import seen
from raykd.data.encoding import id_column
from raykd.logits import StoredLogits, TeacherKey, TeacherLogits
from raykd.models.heads import key_dtype
from raykd.models.prediction import predict_all
from raykd.plan.job import Job
from raykd.tasks import Task
from raykd.training.checkpoint import BEST


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
    context: DistContext,
    dtype: str,
) -> StoredLogits:
    """Born-again: this generation's logits of its training rows, in a store that goes with the run."""
    # What the first worker has written, another one's node may not show yet: its digest and its missing rows count.
    # A trial that is not kept saves no model, so its best weights identify it.
    weights = context.all_gather(file_digest([folder / BEST]) if context.is_main else "")[0]
    key = TeacherKey(
        weights,
        "own",
        json.dumps(task.preprocessing(), sort_keys=True),
        key_dtype(dtype),
        metadata={"name": folder.name},
    )
    store = job.folder / "generations"
    mine = TeacherLogits(store, key)
    ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
    missing = context.all_gather(mine.missing(ids, inputs) if context.is_main else None)[0][
        context.rank :: context.world
    ]

    def compute() -> None:
        logits = predict_all(model, task, rows.select(missing), processor, DistContext(device=context.device), dtype)
        if len(missing):
            mine.add(ids[missing], inputs[missing], logits)

    context.together(compute, "the logits of its own last generation")
    found = StoredLogits([TeacherLogits(store, key)], ids, [inputs], partial=True)

    def look() -> bool:
        found.refresh(always=True)
        return found.complete

    seen(store / key.fingerprint, look)
    return found if found.complete else StoredLogits([TeacherLogits(store, key)], ids, [inputs])
