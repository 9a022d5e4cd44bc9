"""Batches of a pass without gradients, by a budget of tokens."""

import numpy as np


def next_batch(order: np.ndarray, lengths: np.ndarray, start: int, budget: int, most_rows: int) -> np.ndarray:
    """What follows order[:start], a batch for a pass without gradients.

    order: (N,) positions, longest first. Rows times the longest stay within the budget of tokens, if one row does.
    """
    rows = max(1, min(most_rows, budget // max(1, int(lengths[order[start]]))))
    return order[start : start + rows]
