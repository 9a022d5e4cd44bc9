"""Rows of different lengths in one flat array, so that a batch of them needs no Python object for each row."""

from collections.abc import Iterator, Sequence

import numpy as np

_SHORT = 64  # values of a row, in the mean, up to which one look-up of all values is faster than copying row by row


class Ragged(Sequence[np.ndarray]):
    """B rows as a sequence of views."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """values: (T,). starts, ends: (B,) where each row starts in `values`, and the position after its last value."""
        self._values, self._starts, self._ends = values, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        """One row, or for a slice some of them."""
        if isinstance(row, slice):
            return Ragged(self._values, self._starts[row], self._ends[row])
        return self._values[self._starts[row] : self._ends[row]]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True):
            yield self._values[start:end]

    def concatenated(self) -> np.ndarray:
        """All rows' values, one row after another."""
        lengths = self._ends - self._starts
        ends = np.cumsum(lengths, dtype=np.int64)
        if not len(ends) or ends[-1] > _SHORT * len(ends):
            return np.concatenate([*self, self._values[:0]])
        return self._values[np.repeat(self._starts - (ends - lengths), lengths) + np.arange(ends[-1])]


def concatenated(rows: Sequence) -> np.ndarray:
    """All values of B rows, lists or arrays, one row after another."""
    return rows.concatenated() if isinstance(rows, Ragged) else np.concatenate(rows)
