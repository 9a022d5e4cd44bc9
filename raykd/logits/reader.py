"""Reads a batch's raw logits (M, B, H, C) from the store. The blocks are memory-mapped, never loaded."""

from collections.abc import Sequence

import numpy as np

from raykd.common.errors import StoreError
from raykd.logits.block import Block
from raykd.logits.key import TeacherKey
from raykd.logits.logit_store import LogitStore
from raykd.logits.rows import RowIndex, id_array
from raykd.logits.teacher_logits import TeacherLogits


class StoredLogits:
    """M teachers' logits of the N rows of a data set, by the rows' positions. Not thread-safe.

    It pickles as folders and ids: the process that unpickles it maps and verifies the blocks itself. Ids and hashes are
    not copied, so pass memory maps if they are large. Its own memory is, per row, 12 bytes for each teacher, 8 bytes if
    shapes differ, and 56 bytes more while rows are missing.

    What is kept instead of logits (`raykd.logits.keep`) is read in the same way, with F numbers instead of C.

    shapes: (N, 2) int32, each row's H and C; 0 while no teacher has the row. If widths differ, C is the largest.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherLogits],
        row_ids: np.ndarray,
        input_hashes: Sequence[np.ndarray],
        partial: bool = False,
        widths_differ: bool = False,
    ) -> None:
        """teachers: the M teachers.
        row_ids: (N, 16) uint8.
        input_hashes: for each teacher (N, 16) uint8.
        partial: allow rows that are not stored yet; `refresh` adds them once they are.
        widths_differ: allow another C for each teacher, the same in all its rows, as hidden states have.

        Raises StoreError if a row is not stored (unless partial), is stored with another input hash, or has logits of
        different shapes from two teachers.
        """
        if not 0 < len(teachers) == len(input_hashes):
            raise ValueError(f"{len(teachers)} teachers, input hashes of {len(input_hashes)}")
        self._teachers, self._partial = list(teachers), partial
        self._row_ids, self._hashes = row_ids, [id_array(h, "input hashes") for h in input_hashes]
        rows, n = RowIndex(row_ids), len(row_ids)
        self.shapes = np.zeros((n, 2), np.int32)
        # (N, M), so that a row's values are adjacent, and one list of blocks is enough for all teachers
        self._block = np.full((n, len(teachers)), -1, np.int32)
        self._start = np.zeros((n, len(teachers)), np.int64)
        self._values: list[np.ndarray] = []  # each block's flat values
        self._rows: RowIndex | None = rows  # None once complete
        self._lacks = [len(rows)] * len(teachers)  # number of distinct rows that each teacher lacks
        self._widths = np.zeros(len(teachers), np.int32) if widths_differ else None
        self._seen = [0] * len(teachers)  # how many of teacher.arrived have been added
        for teacher, hashes in zip(teachers, self._hashes, strict=True):
            teacher.check_inputs(rows, hashes)
            teacher.refresh(always=True)
        self._take_in(rows)
        for teacher, lacks in zip(teachers, self._lacks, strict=True):
            if lacks and not partial:
                raise StoreError(
                    f"{teacher.key}: {lacks} of {len(rows)} distinct rows are not stored in {teacher.files.where}. "
                    f"Let the teacher compute them first (`missing` says which)"
                )

    def __reduce__(self) -> tuple:
        hashes = [np.asarray(h) for h in self._hashes]
        differ = self._widths is not None
        return StoredLogits, (self._teachers, np.asarray(self._row_ids), hashes, self._partial, differ)

    def __len__(self) -> int:
        return len(self._block)

    @property
    def sources(self) -> list[tuple[LogitStore, TeacherKey]]:
        """The store and the key of each teacher."""
        return [(teacher.store, teacher.key) for teacher in self._teachers]

    @property
    def complete(self) -> bool:
        """Whether every row of every teacher is stored. It stays complete, because mapped blocks are kept."""
        return self._rows is None

    def refresh(self, always: bool = False) -> None:
        """Add the blocks that were written since the last call. Cheap to call often, free once complete.

        Damaged blocks are quarantined and their rows stay missing. Raises StoreError like the constructor.

        always: otherwise blocks of the last second can be left to the next call. Pass it before you conclude that a row
            will not come.
        """
        if self._rows is not None:
            for teacher, lacks in zip(self._teachers, self._lacks, strict=True):
                if lacks:
                    teacher.refresh(always)
            self._take_in(self._rows)

    def lacking(self, indices: np.ndarray | Sequence[int]) -> list[str]:
        """(B,) positions -> the names of the teachers that lack some of these rows, as of the last refresh."""
        if self._rows is None:
            return []
        lacks = (self._block[np.asarray(indices, np.int64)] < 0).any(axis=0)
        return [self._teachers[m].key.name for m in np.flatnonzero(lacks)]

    def __getitem__(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """(B,) positions -> (M, B, H, C) float16, a new array; H, C the batch's largest, the rest 0.

        StoreError if a row is lacking.
        """
        indices = np.asarray(indices, np.int64)
        if self._rows is not None and (names := self.lacking(indices)):
            raise StoreError(
                f"rows of this batch are not stored yet by {', '.join(names)}. Wait until none is `lacking`"
            )
        shapes, teachers = self.shapes[indices], self._block.shape[1]
        (high, wide), values = shapes.max(axis=0, initial=0).tolist(), self._values
        widths = None if self._widths is None or (self._widths == self._widths[0]).all() else self._widths
        block, start = self._block[indices].T.ravel().tolist(), self._start[indices].T.ravel().tolist()
        # The rows of a shuffled batch are nearly all in different blocks. So they are copied one by one, as slices of
        # the maps, which is cheaper than grouping them by block or indexing each value.
        if len(indices) and (shapes == shapes[0]).all() and widths is None:
            size = high * wide
            rows = [values[b][s : s + size] for b, s in zip(block, start, strict=True)]
            return np.concatenate(rows).reshape(teachers, len(indices), high, wide)
        out = np.zeros((teachers, len(indices), high, wide), np.float16)
        targets = out.reshape(teachers * len(indices), high, wide)
        sizes = np.tile(shapes, (teachers, 1))
        if widths is not None:
            sizes[:, 1] = np.repeat(widths, len(indices))
        for target, b, s, (h, c) in zip(targets, block, start, sizes.tolist(), strict=True):
            target[:h, :c] = values[b][s : s + h * c].reshape(h, c)
        return out

    def view(self, teacher: int, position: int) -> np.ndarray:
        """One teacher's logits of one row, (H, C) float16; a read-only view."""
        if (block := self._block[position, teacher]) < 0:
            raise StoreError(f"{self._teachers[teacher].key}: row {position} is not stored yet")
        (h, c), start = self.shapes[position].tolist(), self._start[position, teacher]
        c = c if self._widths is None else int(self._widths[teacher])
        return self._values[block][start : start + h * c].reshape(h, c)

    def _take_in(self, rows: RowIndex) -> None:
        for m, teacher in enumerate(self._teachers):
            for name in teacher.arrived[self._seen[m] :]:
                if self._lacks[m] and (block := teacher.blocks.get(name)):
                    self._locate(rows, m, block)
            self._seen[m] = len(teacher.arrived)
        if not any(self._lacks):
            self._rows = None
            if len(self) and (self.shapes == self.shapes[0]).all():
                self.shapes = np.broadcast_to(self.shapes[0].copy(), self.shapes.shape)

    def _locate(self, rows: RowIndex, m: int, block: Block) -> None:
        """Record the location of teacher m's rows that are in this block and in no earlier one."""
        at, which = self._teachers[m].match(block, rows, self._hashes[m])
        new = self._block[rows.first[which], m] < 0
        at, which = at[new], which[new]
        if not len(which):
            return
        positions, source = rows.everywhere(which)
        shapes = block.shapes[at][source]
        if self._widths is not None:
            self._widths[m] = shapes[0, 1]
            shapes[:, 1] = self._widths.max()
            self.shapes[self.shapes[:, 1] > 0, 1] = self._widths.max()
        self._check_shapes(m, positions, shapes)
        self.shapes[positions] = shapes
        self._block[positions, m] = len(self._values)
        self._start[positions, m] = block.starts()[at][source]
        self._values.append(block.values)
        self._lacks[m] -= len(which)

    def _check_shapes(self, m: int, positions: np.ndarray, shapes: np.ndarray) -> None:
        known = self.shapes[positions]
        wrong = np.flatnonzero(((known != shapes) & (known != 0)).any(axis=1))
        if len(wrong):
            i = positions[wrong[0]]
            other = self._teachers[np.flatnonzero(self._block[i] >= 0)[0]]
            (h, c), (h2, c2) = known[wrong[0]].tolist(), shapes[wrong[0]].tolist()
            raise StoreError(
                f"row {i} (and {len(wrong) - 1} more of a block) has logits of shape ({h}, {c}) from {other.key} "
                f"and ({h2}, {c2}) from {self._teachers[m].key}: their decisions do not line up. "
                f"Use teachers with the same labels, and in question answering with the same tokenizer"
            )
