"""Random logits of a training's teachers, for measuring: the time that they take does not depend on their values."""

from collections.abc import Mapping

import datasets
import numpy as np
import torch

from raykd.common.row_files import open_rows
from raykd.data.encoding import id_column
from raykd.distillation.linear_head import LinearHead
from raykd.distillation.packed import SCORES, pack_hidden
from raykd.logits import TeacherLogits
from raykd.logits.heads import write_head
from raykd.logits.keep import Keep
from raykd.plan.job import Job
from raykd.tasks import make_task

_DIGIT = 2048  # a class is two numbers, see `raykd.distillation.packed`


def shapes_of(job: Job, rows: datasets.Dataset) -> np.ndarray:
    """(N, 2) int: how many decisions each encoded row has, and how many classes they have."""
    task = make_task(job.task, job.label_names)
    return task.shapes(rows.select_columns([*task.shape_columns])[:])


def make_up_logits(
    job: Job, rows: datasets.Dataset, used: np.ndarray, states: Mapping[str, int], rng: np.random.Generator
) -> None:
    """Store logits of the job's rows, in the form that the job keeps, and the heads of hidden states.

    rows: the encoded rows to train on.
    used: the positions of those that are used.
    states: d, the size of each teacher's hidden states, by name.
    """
    part = rows.select(used)
    shapes, ids = shapes_of(job, part).astype(np.int64), id_column(part, "row_id")
    for teacher in job.teachers:
        theirs = datasets.concatenate_datasets([open_rows(folder) for folder in teacher.rows])
        inputs = id_column(theirs.select(used), "input_hash")
        stored = TeacherLogits(job.logits, teacher.key)
        missing = stored.missing(ids, inputs)
        if len(missing):
            width = states[teacher.name] if job.keep.form == "hidden" else 0
            if width:
                weight = torch.from_numpy(rng.standard_normal((int(shapes[:, 1].max()), width), np.float32))
                write_head(job.logits, teacher.key, LinearHead(weight))
            values = [_of_row(job.keep, h, c, width, rng) for h, c in shapes[missing].tolist()]
            stored.add(ids[missing], inputs[missing], values)


def _of_row(keep: Keep, decisions: int, classes: int, states: int, rng: np.random.Generator) -> np.ndarray:
    """(H, F) fp16 in the form of `keep`."""
    if not keep.packed:
        return -rng.exponential(size=(decisions, classes)).astype(np.float16)
    choice = rng.integers(classes, size=(decisions, 1))
    scores = np.zeros((decisions, SCORES))
    scores[:, :2] = np.concatenate([choice % _DIGIT, choice // _DIGIT], 1)
    scores[:, 2], scores[:, 4] = -rng.exponential(size=decisions), rng.exponential(size=decisions)
    if keep.form == "hidden":
        made = torch.from_numpy(rng.standard_normal((decisions, states), np.float32))
        return pack_hidden(torch.from_numpy(scores).half(), made).numpy()
    found = (choice + np.arange(keep.k)) % classes  # K classes, all different
    logits = -np.sort(rng.exponential(size=(decisions, keep.k)))
    logits -= logits[:, :1]
    total = np.log(2 * np.exp(logits).sum(1))  # the others have half of the probability
    packed = [scores, total[:, None], np.zeros((decisions, 1)), logits, found % _DIGIT, found // _DIGIT]
    return np.concatenate(packed, 1).astype(np.float16)
