"""Splits rows into batches by a budget of tokens, for passes without gradients."""

import numpy as np


def next_batch(order: np.ndarray, lengths: np.ndarray, start: int, budget: int, max_rows: int) -> np.ndarray:
    """The next batch of positions for a pass without gradients.

    order: (N,) positions in `lengths`, longest first.
    lengths: (N,) tokens of each row.
    start: the number of positions in earlier batches.
    budget: maximum number of tokens including padding, unless a single row has more.
    max_rows: maximum number of rows.
    """
    rows = max(1, min(max_rows, budget // max(1, int(lengths[order[start]]))))
    return order[start : start + rows]
