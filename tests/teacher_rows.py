"""One teacher's stored logits, row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raykd.logits import StoredLogits, TeacherLogits


class TeacherRows(Sequence[np.ndarray]):
    """One teacher's logits of N rows, in their order: a sequence of read-only (H, C) float16 views."""

    def __init__(self, teacher: TeacherLogits, row_ids: np.ndarray, input_hashes: np.ndarray) -> None:
        """teacher: whose logits.
        row_ids: (N, 16) uint8.
        input_hashes: (N, 16) uint8.

        Raises StoreError like StoredLogits.
        """
        self._stored = StoredLogits([teacher], row_ids, [input_hashes])
        self.shapes = self._stored.shapes  # (N, 2) int32

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return self._stored.view(0, i)
