"""What goes over the wire between drivers, students and teachers. Arrays are numpy: Ray moves them without a copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raykd.tasks.common import NO_LABEL


@dataclass(frozen=True)
class BlockRequest:
    """Rows to be computed and kept as one block. All arrays have one entry a row.

    folders: encoded splits, as this teacher is fed them. positions: rows in them, one split after the other.
    folds: which fold model to ask, -1 for the mean. row_ids, input_hashes: (n, 16) uint8, what they are stored under.
    """

    folders: tuple[Path, ...]
    positions: np.ndarray
    folds: np.ndarray
    row_ids: np.ndarray
    input_hashes: np.ndarray


@dataclass(frozen=True)
class BlockAnswer:
    """rows: of the block; computed: those of them that nobody had stored meanwhile. halved: batches out of memory."""

    rows: int
    computed: int
    seconds: float
    halved: int


@dataclass(frozen=True)
class RowsRequest:
    """Encoded rows themselves. columns: name -> (flat values, (B,) lengths, or None where each is one number)."""

    columns: dict[str, tuple[np.ndarray, np.ndarray | None]]
    folds: np.ndarray  # (B,)


@dataclass(frozen=True)
class RowsAnswer:
    """values: the rows' compact logits one after another, fp16; shapes: (B, 2), each row's H and C.

    seconds: the teacher's work on it (its share, where several requests went through the model together).
    """

    values: np.ndarray
    shapes: np.ndarray
    seconds: float

    def rows(self) -> list[np.ndarray]:
        sizes = self.shapes.astype(np.int64).prod(1)
        return [
            part.reshape(s) for part, s in zip(np.split(self.values, np.cumsum(sizes)[:-1]), self.shapes, strict=True)
        ]


def pack(columns: Mapping[str, Sequence[Any]], folds: np.ndarray) -> RowsRequest:
    """Columns of B values: numbers, lists of integers, or bytes. Labels stay behind: teachers do not see them."""
    packed: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for name, values in columns.items():
        if name == "labels":
            continue
        if isinstance(values[0], (int, np.integer)):
            packed[name] = (np.asarray(values, np.int32), None)
        else:
            rows = [np.frombuffer(v, np.uint8) if isinstance(v, bytes) else np.asarray(v, np.int32) for v in values]
            packed[name] = (np.concatenate(rows), np.array([len(r) for r in rows]))
    return RowsRequest(packed, np.asarray(folds))


def unpack(request: RowsRequest) -> dict[str, list]:
    columns: dict[str, list] = {}
    for name, (values, lengths) in request.columns.items():
        if lengths is None:
            columns[name] = values.tolist()
        else:
            columns[name] = np.split(values, np.cumsum(lengths)[:-1])
    columns["labels"] = [[NO_LABEL]] * len(request.folds)
    return columns
