"""One split of the data: its rows, what identifies them, and what is doubtful about them."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset


@dataclass(frozen=True)
class Split:
    """One split: raw rows under the task's column names.

    ids: (N, 16) uint8, a hash of each row's content without its label.
    digest: hex hash of the whole split, including labels and order.
    labelled: whether its labels are used; teachers label the rows of `data.transfer`.
    groups: (N,), equal for rows that depend on each other, if `data.group` or an optional column of the task says so:
        see `raykd.data.groups`.
    notes: what is doubtful about it, a sentence each, which the report repeats.
    """

    name: str
    rows: Dataset
    ids: np.ndarray
    digest: str
    labelled: bool
    groups: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
