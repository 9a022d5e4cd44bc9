"""An index of rows by content: 10 million 16-byte ids without a Python object per row."""

import numpy as np

ID_BYTES = 16  # raykd.common.hashing.DIGEST_BYTES; part of the blocks' format, so it does not follow a change there


class RowIndex:
    """The K distinct rows among N ids, sorted for search.

    first: (K,) int64, the first position of each distinct row among the N.
    which: (N,) int64, the distinct row at each of the N positions.
    """

    def __init__(self, row_ids: np.ndarray) -> None:
        """row_ids: (N, 16) uint8."""
        keys, low = _words(row_ids)
        order = np.argsort(keys, kind="stable")  # equal rows stay in their order
        new_key = np.diff(keys[order], prepend=~keys[order[:1]]) != 0
        if ((np.diff(low[order], prepend=low[order[:1]]) != 0) & ~new_key).any():
            order = np.lexsort((low, keys))  # two distinct rows have the same key, which practically never happens
        keys, low = keys[order], low[order]
        new = new_key | (np.diff(low, prepend=low[:1]) != 0)
        self.first = order[new]
        self.which = np.empty(len(order), np.int64)
        self.which[order] = np.cumsum(new) - 1
        self._order, self._begins = order, np.append(np.flatnonzero(new), len(order))
        self._keys, self._low = keys[new], low[new]
        begins = np.append(np.flatnonzero(new_key[new]), len(self._keys))
        self._longest_run = int(np.diff(begins).max(initial=1))  # of distinct rows that share a key

    def __len__(self) -> int:
        return len(self.first)

    def everywhere(self, distinct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k,) distinct rows -> (p,) int64 all their positions among the N, (p,) int64 which of the k each one is."""
        begins = self._begins[distinct]
        counts = self._begins[distinct + 1] - begins
        which = np.repeat(np.arange(len(distinct)), counts)
        nth = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]  # 0 for a row's first position
        return self._order[begins[which] + nth], which

    def find(self, row_ids: np.ndarray) -> np.ndarray:
        """(n, 16) uint8 -> (n,) int64: which distinct row each one is; -1 if it is none of them."""
        keys, low = _words(row_ids)
        distinct = np.full(len(keys), -1, np.int64)
        if not len(self):
            return distinct
        order = np.argsort(
            keys
        )  # a search in sorted order is several times faster, because it stays in the CPU's caches
        keys, low = keys[order], low[order]
        left = np.searchsorted(self._keys, keys)
        for step in range(self._longest_run):
            at = np.minimum(left + step, len(self) - 1)
            hit = (self._keys[at] == keys) & (self._low[at] == low)
            distinct[order[hit]] = at[hit]
        return distinct


def _words(row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each id as two uint64: one that mixes all its bits, to sort by, and its low half, to distinguish ids."""
    high, low = id_array(row_ids, "row ids").view(np.uint64).T
    return high ^ (low * np.uint64(0x9E3779B97F4A7C15)), low


def id_array(ids: np.ndarray, name: str) -> np.ndarray:
    """(n, 16) uint8, contiguous. Raises ValueError, with the array's name, for anything else."""
    ids = np.asarray(ids)
    if ids.dtype != np.uint8 or ids.ndim != 2 or ids.shape[1] != ID_BYTES:
        raise ValueError(f"{name} must be (n, {ID_BYTES}) uint8, not {ids.shape} {ids.dtype}")
    return np.ascontiguousarray(ids)
