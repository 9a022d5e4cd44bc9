"""Whether a teacher's models go through torch.compile, which with `logits.compile: auto` its own blocks show."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from raykd.models.problems import short_reason
from raykd.models.torch_compile import compiled_for_all_shapes

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar("T")
# Seconds of work that a replica has left, at least, for a trial. Compiling took 36 to 66 s for MiniLM on two CPU cores
# and saved a tenth of the time, so by then a trial has paid several times over, and one that finds nothing costs 4%.
LONG = 1800.0
MANY = 20  # blocks that are left, at least: a trial takes seven or more
BLOCKS, SECONDS = 3, 5.0  # of each kind, plain and compiled, that are compared, at least
GAIN = 0.98  # compiled blocks take at most this share of the time, or they are not used


class Compiling:
    """Whether the models of one teacher in one process compute the next block as they are, or compiled.

    A trial loses no work: its blocks are stored like all others. The first one compiles; after it, compiled and plain
    blocks take turns. No key of the store has whether a logit is from compiled models: only its last bits can differ.
    """

    note = ""  # what a trial has found
    used = False  # whether anything was compiled
    extra_seconds = 0.0  # that compiling took in a trial

    def __init__(self, setting: bool | Literal["auto"]) -> None:
        """setting: `logits.compile`."""
        self._compiled: list[torch.nn.Module] = []
        self._settled = setting != "auto"
        self._on = setting is True
        self._row_seconds, self._token_seconds = list[float](), 0.0  # of plain blocks before a trial; of the last one
        self._trying = self._warm = False
        self._measured: dict[bool, list[float]] = {
            True: [],
            False: [],
        }  # in a trial: whether compiled -> seconds per token
        self._spent = {True: 0.0, False: 0.0}  # seconds that these took

    def called(self, models: Sequence[torch.nn.Module]) -> Sequence[torch.nn.Module]:
        """What computes: the teacher's models, or the same compiled."""
        if not self._on:
            return models
        if not self._compiled:
            self._compiled, self.used = [compiled_for_all_shapes(model) for model in models], True
        return self._compiled

    def block(self, compute: Callable[[], T], rows: int, tokens: int, left: int) -> T:
        """What `compute` returns for a block. It calls what `called` returns.

        rows, tokens: of the block.
        left: rows that this replica has to compute, this block's included.
        """
        if self._settled:
            return compute()
        self._trying = self._trying or self._worth_a_trial(rows, left)
        self._on = self._trying and len(self._measured[True]) <= len(self._measured[False])
        began = time.monotonic()
        try:
            computed = compute()
        except Exception as error:
            if not self._on:
                raise
            self.extra_seconds += time.monotonic() - began
            self._settle(False, f"failed ({short_reason(error)})")
            return compute()
        self._add(rows, tokens, time.monotonic() - began)
        return computed

    def _worth_a_trial(self, rows: int, left: int) -> bool:
        plain = self._row_seconds[1:]  # without the first block, which also allocates
        return bool(plain) and left * float(np.median(plain)) >= LONG and left >= MANY * rows

    def _add(self, rows: int, tokens: int, seconds: float) -> None:
        if not self._trying:
            self._row_seconds.append(seconds / rows)
            self._token_seconds = seconds / tokens
        elif not self._warm:
            self._warm = True
            self.extra_seconds = max(0.0, seconds - tokens * self._token_seconds)
        else:
            self._measured[self._on].append(seconds / tokens)
            self._spent[self._on] += seconds
            if all(len(self._measured[on]) >= BLOCKS and self._spent[on] >= SECONDS for on in (True, False)):
                ratio = float(np.median(self._measured[True]) / np.median(self._measured[False]))
                self._settle(ratio <= GAIN, f"{ratio:.2f} of the time for each token, after {self.extra_seconds:.0f} s")

    def _settle(self, on: bool, found: str) -> None:
        self._settled, self._on = True, on
        self.note = f"torch.compile: {found}; {'used' if on else 'not used'} (logits.compile: auto)"
