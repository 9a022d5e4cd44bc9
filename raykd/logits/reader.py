"""The student's side: rows of the data set to raw logits (M, B, H, C), mapped, never loaded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raykd.errors import StoreError
from raykd.logits.rows import RowIndex, id_array
from raykd.logits.store import TeacherLogits


class TeacherRows(Sequence[np.ndarray]):
    """One teacher's logits of N rows, in their order: a sequence of read-only (H, C) float16 views.

    What it keeps per row is 20 bytes that say where the row is (12 where all have the same shape).
    """

    def __init__(
        self,
        teacher: TeacherLogits,
        row_ids: np.ndarray,
        input_hashes: np.ndarray,
        rows: RowIndex | None = None,
    ) -> None:
        """row_ids, input_hashes: (N, 16) uint8; `rows`: the index of row_ids, where it exists already.

        StoreError if a row is not stored, or with another input hash.
        """
        rows = RowIndex(row_ids) if rows is None else rows
        block = np.full(len(rows), -1, np.int32)
        start = np.zeros(len(rows), np.int64)
        shapes = np.zeros((len(rows), 2), np.int32)
        self.values: list[np.ndarray] = []  # each block's flat values
        for found, at, which in teacher.matches(rows, id_array(input_hashes, "input hashes")):
            if len(at):
                block[which] = len(self.values)
                start[which] = found.starts()[at]
                shapes[which] = found.shapes[at]
                self.values.append(found.values)
        if lacking := np.count_nonzero(block < 0):
            raise StoreError(
                f"{teacher.key}: {lacking} of {len(rows)} distinct rows are not stored in {teacher.folder}. "
                f"Let the teacher compute them first (`missing` says which)"
            )
        self.block, self.start = block[rows.which], start[rows.which]  # (N,) int32, (N,) int64
        same = len(shapes) > 0 and (shapes == shapes[0]).all()
        self.shapes = np.broadcast_to(shapes[0], (len(row_ids), 2)) if same else shapes[rows.which]  # (N, 2)

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        h, c = self.shapes[i].tolist()
        start = self.start[i]
        return self.values[self.block[i]][start : start + h * c].reshape(h, c)


class StoredLogits:
    """M teachers' logits of the N rows of a data set, by the rows' positions.

    Pickles as folders and ids: the process that unpickles it maps and verifies the blocks itself. Ids
    and hashes are kept as they are given, so pass memory maps where they are many.
    shapes: (N, 2) int32, each row's H and C.
    """

    def __init__(
        self, teachers: Sequence[TeacherLogits], row_ids: np.ndarray, input_hashes: Sequence[np.ndarray]
    ) -> None:
        """row_ids: (N, 16) uint8; input_hashes: per teacher (N, 16) uint8.

        StoreError if a row is not stored, is stored with another input hash, or has logits of another
        shape from one teacher than from another.
        """
        if not 0 < len(teachers) == len(input_hashes):
            raise ValueError(f"{len(teachers)} teachers, input hashes of {len(input_hashes)}")
        self._given = (list(teachers), row_ids, list(input_hashes))
        index = RowIndex(row_ids)
        located = [TeacherRows(t, row_ids, h, index) for t, h in zip(teachers, input_hashes, strict=True)]
        self.shapes = located[0].shapes
        for teacher, rows in zip(teachers, located, strict=True):
            wrong = np.flatnonzero((rows.shapes != self.shapes).any(axis=1))
            if len(wrong):
                i = wrong[0]
                (h, c), (h2, c2) = self.shapes[i].tolist(), rows.shapes[i].tolist()
                raise StoreError(
                    f"row {i} (and {len(wrong) - 1} more) has logits of shape ({h}, {c}) from "
                    f"{teachers[0].key} and ({h2}, {c2}) from {teacher.key}: their decisions do not line up. "
                    f"Use teachers with the same labels, in question answering with the same tokenizer too"
                )
        self._values = [values for rows in located for values in rows.values]
        first = np.cumsum([0] + [len(rows.values) for rows in located[:-1]])
        # (N, M): what a batch needs of a row lies together, and one list of blocks serves all teachers
        self._block = np.stack([rows.block + k for rows, k in zip(located, first, strict=True)], 1).astype(np.int32)
        self._start = np.stack([rows.start for rows in located], 1)

    def __reduce__(self) -> tuple:
        teachers, row_ids, input_hashes = self._given
        return StoredLogits, (teachers, np.asarray(row_ids), [np.asarray(h) for h in input_hashes])

    def __len__(self) -> int:
        return len(self._block)

    def __getitem__(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """(B,) positions -> (M, B, H, C) float16, a new array; H, C the batch's largest, the rest 0."""
        indices = np.asarray(indices, np.int64)
        shapes, teachers = self.shapes[indices], self._block.shape[1]
        (high, wide), values = shapes.max(axis=0, initial=0).tolist(), self._values
        block, start = self._block[indices].T.ravel().tolist(), self._start[indices].T.ravel().tolist()
        # A shuffled batch has nearly every row in another block, so rows are copied one by one: slices
        # of the maps are cheaper than grouping by block or indexing value by value.
        if len(indices) and (shapes == shapes[0]).all():
            size = high * wide
            rows = [values[b][s : s + size] for b, s in zip(block, start, strict=True)]
            return np.concatenate(rows).reshape(teachers, len(indices), high, wide)
        out = np.zeros((teachers, len(indices), high, wide), np.float16)
        targets = out.reshape(teachers * len(indices), high, wide)
        for target, b, s, (h, c) in zip(targets, block, start, shapes.tolist() * teachers, strict=True):
            target[:h, :c] = values[b][s : s + h * c].reshape(h, c)
        return out
