"""Finds the size of a batch that a GPU computes fastest: `logits.batch_tokens: auto`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from raykd.common.device_errors import out_of_memory
from raykd.common.late import Late
from raykd.models.batching import fastest_budget
from raykd.models.inputs import InputRows
from raykd.models.prediction import Inference, pending

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_TIMED = 3  # passes of each size of a batch; the fastest counts


def search_batch(
    inference: Inference, rows: InputRows, positions: np.ndarray, first: int, most_rows: int
) -> tuple[int, str] | None:
    """Measure batches of rows of median length, each of twice as many tokens as the one before.

    positions: (n,) of a block's rows.
    first: number of tokens to begin with.
    most_rows: maximum number of rows in a batch.

    Returns the number of tokens that gives the most rows per second, and a line for the log. None if most_rows have no
    more tokens than `first`.
    """
    lengths = rows.lengths[positions]
    order = np.argsort(lengths, kind="stable")
    typical = positions[order[len(order) // 2 :]]  # those after it are about as long
    length = max(1, int(lengths[order[len(order) // 2]]))
    if most_rows * length <= first:
        return None

    def rate(tokens: int) -> float | None:
        count = tokens // length
        seconds = []
        try:
            columns = rows[np.resize(typical[:count], count)]
            for _ in range(_TIMED + 1):  # the first one also allocates, and compiles
                began = time.monotonic()
                pending(inference, columns).get()
                seconds.append(time.monotonic() - began)
            return count / min(seconds[1:])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        return None

    tokens, measured = fastest_budget(rate, max(length, first), most_rows * length)
    torch.cuda.empty_cache()  # of the batches that are not used
    tried = ", ".join(f"{tokens}: {speed:.0f}" for tokens, speed in measured)
    rates = f"rows/s by tokens of a batch, {tried or 'none fits'}"
    return tokens, f"batches of {tokens} tokens ({rates}); logits.batch_tokens sets another size"
