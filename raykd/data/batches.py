"""The rows of each optimizer step. They do not depend on the number of workers, nor on a resume."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

_POOL_BATCHES = 50  # batches among which rows are grouped by length


def batch_order(lengths: np.ndarray, batch_size: int, seed: int, group_by_length: bool) -> Iterator[np.ndarray]:
    """Endless batches of row positions, (batch_size,) each.

    Each epoch is a new permutation. Rows that do not fill a batch start the next epoch's first batch, so every step has
    the same number of rows.

    lengths: (N,) of the rows.
    batch_size: rows per step.
    seed: of the permutations.
    group_by_length: sort by length within every 50 batches, then shuffle the batches. This reduces padding and still
        mixes the rows differently in every epoch.
    """
    rng = np.random.default_rng(seed)
    rows = np.empty(0, np.int64)
    while True:
        rows = np.concatenate([rows, rng.permutation(len(lengths))])
        full = len(rows) // batch_size * batch_size
        batches, rows = rows[:full], rows[full:]
        if group_by_length:
            pool = _POOL_BATCHES * batch_size
            pools = [batches[i : i + pool] for i in range(0, full, pool)]
            batches = np.concatenate([p[np.argsort(-lengths[p], kind="stable")] for p in pools] or [batches])
        batches = batches.reshape(-1, batch_size)
        yield from rng.permutation(batches) if group_by_length else batches


def first_epoch(lengths: np.ndarray, batch_size: int, seed: int, group_by_length: bool) -> np.ndarray:
    """(N,) row positions, each once, in the order in which a training first needs them.

    The arguments are those of `batch_order`.
    """
    order = np.concatenate(
        list(islice(batch_order(lengths, batch_size, seed, group_by_length), len(lengths) // batch_size + 1))
    )
    _, first = np.unique(order, return_index=True)
    early = order[np.sort(first)]
    return np.concatenate([early, np.setdiff1d(np.arange(len(lengths)), early)])
