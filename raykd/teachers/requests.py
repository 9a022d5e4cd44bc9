"""Messages between driver, students and teachers. Arrays are numpy, which Ray moves without a copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raykd.tasks.common import NO_LABEL


@dataclass(frozen=True)
class BlockRequest:
    """Rows to compute and store as one block. Arrays have one entry per row.

    folders: splits encoded with this teacher's tokenizer.
    positions: (n,) rows in the concatenation of these splits.
    folds: (n,) which fold's model computes the row; -1 for the mean of all.
    row_ids, input_hashes: (n, 16) uint8, the identity under which the rows are stored.
    """

    folders: tuple[Path, ...]
    positions: np.ndarray
    folds: np.ndarray
    row_ids: np.ndarray
    input_hashes: np.ndarray


@dataclass(frozen=True)
class BlockAnswer:
    """A block is stored.

    rows: in the block.
    computed: rows that were not in the store yet.
    seconds: the replica's time for this block: to compute or to store it, whichever takes longer, because it stores one
        while it computes the next. Without the search for the size of a batch and compiling in a trial.
    halved: batches that ran out of memory and were split in two.
    notes: for the log, what the replica decided during this block: how large its batches are, whether it compiles.
    """

    rows: int
    computed: int
    seconds: float
    halved: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowsRequest:
    """B encoded rows, sent by value.

    columns: name -> (flat values, (B,) lengths); lengths are None for a column with one number per row.
    folds: (B,) which fold's model computes the row; -1 for the mean of all.
    """

    columns: dict[str, tuple[np.ndarray, np.ndarray | None]]
    folds: np.ndarray


@dataclass(frozen=True)
class RowsAnswer:
    """Logits of B rows.

    values: flat fp16, the rows' compact logits one after another.
    shapes: (B, 2), each row's H and C.
    seconds: the teacher's time for it; its share, where several requests went through the model in one batch.
    """

    values: np.ndarray
    shapes: np.ndarray
    seconds: float

    def rows(self) -> list[np.ndarray]:
        """Each row's logits, (H, C_i) fp16."""
        sizes = self.shapes.astype(np.int64).prod(1)
        return [
            part.reshape(s) for part, s in zip(np.split(self.values, np.cumsum(sizes)[:-1]), self.shapes, strict=True)
        ]


def pack(columns: Mapping[str, Sequence[Any]], folds: np.ndarray) -> RowsRequest:
    """A request from columns of B values: numbers, lists of integers, or bytes. Teachers never get the labels."""
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
