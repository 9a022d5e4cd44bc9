"""Which blocks of logits are missing, in the order in which the first student's first epoch needs them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from raykd.config.schema import TeacherConfig
from raykd.data.encoding import Encoded, id_column
from raykd.data.split import Split
from raykd.logits import TeacherLogits
from raykd.models.inputs import InputRows
from raykd.models.prediction import ROWS_ON_GPU
from raykd.tasks import make_task
from raykd.teachers.requests import BlockRequest
from raykd.teachers.serving import ServedTeacher

log = logging.getLogger(__name__)
_ROWS_ON_CPU = 1024  # MiniLM takes two cores 5 s for as many of SST-2's rows
# On a GPU a block has up to as many rows as a batch, since each block costs the host a file, a message and the launches
# of at least one batch: benchmarks/RESULTS.md, "The limit that the host sets a teacher". But no more tokens than this.
_TOKENS_ON_GPU = 2**17
_BLOCKS_EACH = 8  # of a replica at least, or replicas that are done wait long for the last one
# A student maps every block of its teachers, and Linux allows a process 65,530 maps; each is also a file to list.
MAX_BLOCKS = 16384
# Of a language model, a block has fewer rows than the config's, so that a slow processor computes it within
# logits.timeout_s, and no process holds gigabytes of logits.
BLOCK_TOKENS, BLOCK_BYTES = 2**15, 2**27
_MOST_BLOCKS = 2048  # that tokens make of one sequence of rows: a student maps every block of every teacher


@dataclass(frozen=True)
class TeacherWork:
    """A teacher and the rows whose logits it provides.

    config: its section of the config, with the resources of its replicas.
    splits: by name, in the order in which their logits are needed.
    joint_splits: how many of the splits, from the first on, are one sequence of rows for the student (train and
        transfer).
    order: (N,) positions in that sequence, in the order in which they are needed; None: in sequence.
    """

    config: TeacherConfig
    served: ServedTeacher
    splits: dict[str, tuple[Split, Encoded]]
    joint_splits: int = 1
    order: np.ndarray | None = None


def block_rows(teacher_work: TeacherWork, setting: int | Literal["auto"], on_gpus: bool, teachers: int) -> int:
    """Maximum number of rows in a block of a teacher.

    setting: `logits.block_rows`.
    on_gpus: whether its replicas have GPUs, or shares of one.
    teachers: whose blocks a student maps, with about as many rows as this one.
    """
    splits = [encoded.open() for _, encoded in teacher_work.splits.values()]
    total = sum(len(rows) for rows in splits)
    least = math.ceil(total * teachers / MAX_BLOCKS)
    if setting != "auto":
        if least > setting:
            text = "teacher %s: blocks of %d rows instead of logits.block_rows = %d, which would make too many files"
            log.info(text, teacher_work.config.name, least, setting)
        return max(least, setting)
    if not on_gpus or not total:
        return max(least, _ROWS_ON_CPU)
    served, replicas = teacher_work.served, teacher_work.config.replicas
    rows_each = total // (_BLOCKS_EACH * (1 if replicas == "auto" else replicas))
    lengths = [InputRows(rows, make_task(served.task, served.label_names)).lengths for rows in splits]
    rows_of_tokens = int(_TOKENS_ON_GPU / max(1.0, np.concatenate(lengths).mean()))
    return max(least, _ROWS_ON_CPU, min(ROWS_ON_GPU, rows_each, rows_of_tokens))


def missing_blocks(teacher_work: TeacherWork, stored: TeacherLogits, most_rows: int) -> list[BlockRequest]:
    """The blocks to compute, of at most `most_rows` rows each. Rows that are stored already are in none of them.

    Where classes are tokens, a block is also limited by its tokens and by the bytes of its logits.
    """
    parts = list(teacher_work.splits.values())
    groups: list[tuple[Sequence[tuple[Split, Encoded]], np.ndarray | None]] = [
        (parts[: teacher_work.joint_splits], teacher_work.order)
    ]
    groups += [([part], None) for part in parts[teacher_work.joint_splits :]]
    return [
        block for group, order in groups for block in _of_one_sequence(teacher_work, stored, most_rows, group, order)
    ]


def _of_one_sequence(
    teacher_work: TeacherWork,
    stored: TeacherLogits,
    most_rows: int,
    parts: Sequence[tuple[Split, Encoded]],
    order: np.ndarray | None,
) -> list[BlockRequest]:
    columns = [_columns(teacher_work.served, split, encoded) for split, encoded in parts]
    ids, inputs, folds = (np.concatenate(column) for column in zip(*columns, strict=True))
    missing = stored.missing(ids, inputs)
    if not len(missing):
        return []
    if order is not None:
        missing = order[np.isin(order, missing)]
    folders: tuple[Path, ...] = tuple(encoded.folder for _, encoded in parts)
    sizes = np.concatenate([_sizes(teacher_work.served, encoded) for _, encoded in parts])
    return [
        BlockRequest(folders, chosen, folds[chosen], ids[chosen], inputs[chosen])
        for chosen in np.split(missing, cuts(sizes[missing], most_rows))
    ]


def cuts(sizes: np.ndarray, most_rows: int) -> list[int]:
    """Where a sequence of rows is cut into blocks of at most `most_rows` rows, which begin at 0 and at each cut.

    sizes: (N,) float, the share of a block that each row fills. A row of more than 1 has a block of its own.
    """
    ends, found, start = np.cumsum(sizes), [], 0
    while start < len(sizes):
        full = int(np.searchsorted(ends, (ends[start - 1] if start else 0.0) + 1 + 1e-9, side="right"))
        start = max(start + 1, min(start + most_rows, full))
        found.append(start)
    return found[:-1]


def _sizes(served: ServedTeacher, encoded: Encoded) -> np.ndarray:
    """(N,) share of a block that each row fills, besides its share of the rows."""
    rows = encoded.open()
    if not served.task.predicts_tokens or not len(rows):
        return np.zeros(len(rows))
    task = make_task(served.task, served.label_names)
    tokens = np.asarray(rows.select_columns("length")[:]["length"], np.float64)
    shapes = task.shapes(rows.select_columns([*task.shape_columns])[:])
    logits = 2 * shapes[:, 0] * (shapes[:, 1] if served.keep.form == "all" else 0)
    most_tokens = max(BLOCK_TOKENS, tokens.sum() / _MOST_BLOCKS)
    return np.maximum(tokens / most_tokens, logits / BLOCK_BYTES)


def _columns(served: ServedTeacher, split: Split, encoded: Encoded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row ids (N, 16) uint8, input hashes (N, 16) uint8, and which fold's model computes each row (N,) int."""
    rows = encoded.open()
    return id_column(rows, "row_id"), id_column(rows, "input_hash"), served.folds_of_rows(split.ids, rows)
