"""Encoded rows as models take them: read from Arrow without a Python object for each token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from raykd.common.ragged import Ragged
from raykd.common.row_files import open_rows
from raykd.tasks.common import Task


class InputRows:
    """The columns of encoded rows that `collate` and `shapes` read: `rows[positions]` gives B values of each.

    `datasets` makes a Python list of each row's tokens, which takes longer than a GPU needs to compute a small model's
    logits of them. Here those of `Task.arrays` are `Ragged`: views of the memory-mapped file.
    """

    def __init__(self, rows: Dataset, task: Task) -> None:
        columns, self._task = input_columns(rows, task), task
        self._table: pa.Table = columns.with_format("arrow")[:]
        self._arrays = {name for name in task.arrays if name in columns.column_names}
        self._first: dict[str, np.ndarray] = {}  # the number of the first row of each of a column's chunks
        self._views: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}  # by column and chunk: values, offsets

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) the tokens of each row, by which batches are limited."""
        lengths = self._table["length"].to_numpy()
        return lengths * self._task.tokens_per_length(self[np.zeros(1, int)]) if len(lengths) else lengths

    def __getitem__(self, positions: np.ndarray) -> dict[str, Any]:
        """Columns of B values, lists or `Ragged`. positions: (B,) in any order."""
        return {name: self._column(name, np.asarray(positions)) for name in self._table.column_names}

    def _column(self, name: str, positions: np.ndarray) -> Sequence:
        column = self._table[name]
        if name not in self._first:
            self._first[name] = np.cumsum([0] + [len(chunk) for chunk in column.chunks])[:-1]
        if column.num_chunks == 1:
            return self._of_chunk(name, 0, positions)
        chunk_of = np.searchsorted(self._first[name], positions, side="right") - 1
        found: list = [None] * len(positions)
        for number in np.unique(chunk_of):
            at = np.flatnonzero(chunk_of == number)
            inside = positions[at] - self._first[name][number]
            for i, value in zip(at.tolist(), self._of_chunk(name, int(number), inside), strict=True):
                found[i] = value
        return found

    def _of_chunk(self, name: str, number: int, rows: np.ndarray) -> Sequence:
        chunk = self._table[name].chunk(number)
        if name not in self._arrays:
            return chunk.take(pa.array(rows)).to_pylist()
        if (name, number) not in self._views:
            self._views[name, number] = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        values, offsets = self._views[name, number]
        return Ragged(values, offsets[rows], offsets[rows + 1])


def input_columns(rows: Dataset, task: Task) -> Dataset:
    """Only the columns that `collate` and `shapes` read. In question answering, the others are most of a row."""
    wanted = {*task.model_inputs, *task.collate_columns, *task.shape_columns, "labels", "length"}
    names = [name for name in rows.column_names if name in wanted]
    return rows if names == rows.column_names else rows.select_columns(names)


def open_inputs(folders: Sequence[Path], task: Task) -> InputRows:
    """The encoded rows of these folders, concatenated."""
    return InputRows(concatenate_datasets([open_rows(folder) for folder in folders]), task)
