"""The number of CPU threads that torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """As many in the block, and as before afterwards: a process that Ray uses again keeps its number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
