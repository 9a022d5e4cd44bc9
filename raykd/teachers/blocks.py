"""Which blocks of logits are missing, in the order in which the first student's first epoch needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raykd.config.schema import TeacherConfig
from raykd.data.encoding import Encoded, id_column
from raykd.data.loading import Split
from raykd.logits import TeacherLogits
from raykd.teachers.requests import BlockRequest
from raykd.teachers.serving import ServedTeacher


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


def missing_blocks(teacher_work: TeacherWork, stored: TeacherLogits, block_rows: int) -> list[BlockRequest]:
    """The blocks to compute, of at most `block_rows` rows each. Rows that are stored already are in none of them."""
    parts = list(teacher_work.splits.values())
    groups: list[tuple[Sequence[tuple[Split, Encoded]], np.ndarray | None]] = [
        (parts[: teacher_work.joint_splits], teacher_work.order)
    ]
    groups += [([part], None) for part in parts[teacher_work.joint_splits :]]
    return [
        block for group, order in groups for block in _of_one_sequence(teacher_work, stored, block_rows, group, order)
    ]


def _of_one_sequence(
    teacher_work: TeacherWork,
    stored: TeacherLogits,
    block_rows: int,
    parts: Sequence[tuple[Split, Encoded]],
    order: np.ndarray | None,
) -> list[BlockRequest]:
    columns = [_columns(teacher_work.served, split, encoded) for split, encoded in parts]
    ids, inputs, folds = (np.concatenate(column) for column in zip(*columns, strict=True))
    missing = stored.missing(ids, inputs)
    if order is not None:
        missing = order[np.isin(order, missing)]
    folders: tuple[Path, ...] = tuple(encoded.folder for _, encoded in parts)
    return [
        BlockRequest(folders, chosen, folds[chosen], ids[chosen], inputs[chosen])
        for chosen in (missing[start : start + block_rows] for start in range(0, len(missing), block_rows))
    ]


def _columns(served: ServedTeacher, split: Split, encoded: Encoded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row ids (N, 16) uint8, input hashes (N, 16) uint8, and which fold's model computes each row (N,) int."""
    rows = encoded.open()
    return id_column(rows, "row_id"), id_column(rows, "input_hash"), served.folds_of_rows(split.ids, rows)
