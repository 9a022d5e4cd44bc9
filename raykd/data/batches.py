"""Which rows each optimizer step sees: the same for any number of workers, and after a resume."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

_POOL_BATCHES = 50  # rows of like length are brought together among this many batches


def batch_order(lengths: np.ndarray, batch_size: int, seed: int, group_by_length: bool) -> Iterator[np.ndarray]:
    """Endless batches of row positions, (batch_size,) each.

    lengths: (N,) of the rows. Each epoch is a new permutation; rows that do not fill a batch open the
    next epoch's first, so every step has the same number of rows. Grouping sorts by length among 50
    batches at a time and shuffles the batches: less padding, and still another mix every epoch.
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
    """(N,) row positions in the order in which a training will first need them; all of them, each once."""
    order = np.concatenate(
        list(islice(batch_order(lengths, batch_size, seed, group_by_length), len(lengths) // batch_size + 1))
    )
    _, first = np.unique(order, return_index=True)
    early = order[np.sort(first)]
    return np.concatenate([early, np.setdiff1d(np.arange(len(lengths)), early)])
