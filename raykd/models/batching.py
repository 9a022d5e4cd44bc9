"""Splits rows into batches by a budget of tokens, for passes without gradients."""

from collections.abc import Callable

import numpy as np

LEAST_RISE = 1.05  # of the rows per second, that makes it worth to double a batch


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


def fastest_budget(rate: Callable[[int], float | None], first: int, most: int) -> tuple[int, list[tuple[int, float]]]:
    """Double a batch until its rows per second rise by less than 5%, or memory ends.

    rate: rows per second with batches of so many tokens; None if they do not fit into memory.
    first: the number of tokens to begin with, which is the result if no larger batch is faster.
    most: maximum number of tokens.

    Returns the number of tokens, and what has been measured: tokens and their rows per second.
    """
    measured: list[tuple[int, float]] = []
    budget = first
    while found := rate(budget):
        if measured and found < LEAST_RISE * measured[-1][1]:
            return measured[-1][0], [*measured, (budget, found)]
        measured.append((budget, found))
        if budget >= most:
            break
        budget = min(2 * budget, most)
    return measured[-1][0] if measured else first, measured
