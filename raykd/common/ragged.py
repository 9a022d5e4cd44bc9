"""Rows of different lengths in one flat array, so that a batch of them needs no Python object for each row."""

from collections.abc import Iterator, Sequence

import numpy as np

_SHORT = 64  # values of a row, up to which one look-up of all values is faster than a copy of each row


class Ragged(Sequence[np.ndarray]):
    """B rows as a sequence of views."""

    def __init__(self, values: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        """values: (T,). begins, ends: (B,) where each row begins in `values`, and the position after its last value."""
        self._values, self._begins, self._ends = values, begins, ends

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        """One row, or for a slice some of them."""
        if isinstance(row, slice):
            return Ragged(self._values, self._begins[row], self._ends[row])
        return self._values[self._begins[row] : self._ends[row]]

    def __iter__(self) -> Iterator[np.ndarray]:
        for begin, end in zip(self._begins.tolist(), self._ends.tolist(), strict=True):
            yield self._values[begin:end]

    def joined(self) -> np.ndarray:
        """All rows' values, one row after another."""
        lengths = self._ends - self._begins
        ends = np.cumsum(lengths, dtype=np.int64)
        if not len(ends) or ends[-1] > _SHORT * len(ends):
            return np.concatenate([*self, self._values[:0]])
        return self._values[np.repeat(self._begins - (ends - lengths), lengths) + np.arange(ends[-1])]


def joined(rows: Sequence) -> np.ndarray:
    """All values of B rows, lists or arrays, one row after another."""
    return rows.joined() if isinstance(rows, Ragged) else np.concatenate(rows)
