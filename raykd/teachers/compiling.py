"""Whether a teacher's models go through torch.compile, which with `logits.compile: auto` its own blocks show."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from raykd.common.late import Late
from raykd.models.problems import short_reason
from raykd.models.torch_compile import compiled_for_all_shapes

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

T = TypeVar("T")
# Seconds of work that a replica has left, at least, for a trial. On two CPU cores compiling takes 40 to 50 s for models
# of BERT's kind, and pays after 700 s or more: benchmarks/teacher_compile.py.
LONG = 1800.0
MANY = 40  # blocks that are left, at least: a trial takes eleven or more
PAIRS, SECONDS = 5, 30.0  # of a compiled and a plain block, at least; and of compiled and of plain blocks
GAIN = 0.97  # compiled blocks take at most this share of the time, or they are not used


class Compiling:
    """Whether the models of one teacher in one process compute the next block as they are, or compiled.

    The blocks of a trial are stored like all others. The first one compiles; after it, compiled and plain blocks take
    turns. The store's keys do not say whether a logit is from a compiled model, so a trial first checks that both
    agree. If a compiled block fails, the plain models compute it and all later ones.
    """

    note = ""  # the result of the trial, for the log
    used = False  # whether anything was compiled
    extra_seconds = 0.0  # that compiling took in a trial

    def __init__(self, setting: bool | Literal["auto"]) -> None:
        """setting: `logits.compile`."""
        self.auto = setting == "auto"
        self._on = setting is True
        self._settled = not self.auto
        self._compiled: list[torch.nn.Module] = []
        self._row_seconds, self._token_seconds = list[float](), 0.0  # of plain blocks before a trial; of the last one
        self.trying = self._warm = False
        self._token_times: dict[bool, list[float]] = {True: [], False: []}  # by whether a block of a trial was compiled
        self._spent = {True: 0.0, False: 0.0}

    def called(self, models: Sequence[torch.nn.Module]) -> Sequence[torch.nn.Module]:
        """The modules to call for the next block: the teacher's models, or their compiled versions."""
        if not self._on:
            return models
        if not self._compiled:
            self._compiled, self.used = [compiled_for_all_shapes(model) for model in models], True
        return self._compiled

    @property
    def overlaps(self) -> bool:
        """Whether the next block can be sent before this one is complete: not if this one is timed, or can be computed
        again.
        """
        return self._settled and not (self.auto and self._on)

    def on_out_of_memory(self) -> None:
        """Raise MemoryError if a trial's compiled models computed the batch: the plain ones may need less."""
        if self.auto and self._on:
            raise MemoryError("a batch does not fit")

    def block(self, compute: Callable[[], T], agree: Callable[[], bool], rows: int, tokens: float, left: int) -> T:
        """Compute a block.

        compute: returns the block's logits, from the modules that `called` returns.
        agree: whether the compiled models' logits of some of the block's rows equal the plain ones', to rounding.
        rows: number of rows in the block.
        tokens: number of tokens in the block, counted once for each model that reads them.
        left: number of rows that this replica has still to compute, with this block; 0 forbids trials.
        """
        if not self.auto or not rows or (self._settled and not self._on):
            return compute()
        if self.trying and not left:
            self._settle(False, "stopped, as a replica was lost")
        if not self._settled:
            self.trying = self.trying or self._worth_a_trial(rows, left)
            self._on = self.trying and len(self._token_times[True]) <= len(self._token_times[False])
        began = time.monotonic()
        try:
            if self._on and not self._warm and not agree():
                raise ValueError("the logits differ")
            computed = compute()
        except Exception as error:
            if not self._on:
                raise
            reason = short_reason(error)
        else:
            if not self._settled:
                self._add(rows, tokens, time.monotonic() - began)
            return computed
        # Outside the handler, whose traceback holds memory.
        self.extra_seconds += time.monotonic() - began
        self._settle(False, f"failed ({reason})")
        return compute()

    def _worth_a_trial(self, rows: int, left: int) -> bool:
        plain = self._row_seconds[1:]  # without the first block, which also allocates
        return bool(plain) and left * float(np.median(plain)) >= LONG and left >= MANY * rows

    def _add(self, rows: int, tokens: float, seconds: float) -> None:
        if not self.trying:
            self._row_seconds.append(seconds / rows)
            self._token_seconds = seconds / tokens
        elif not self._warm:
            self._warm = True
            self.extra_seconds += max(0.0, seconds - tokens * self._token_seconds)
        else:
            self._token_times[self._on].append(seconds / tokens)
            self._spent[self._on] += seconds
            pairs = np.array(list(zip(self._token_times[True], self._token_times[False], strict=False)))
            if len(pairs) >= PAIRS and min(self._spent.values()) >= SECONDS:
                ratio, high = np.quantile(pairs[:, 0] / pairs[:, 1], [0.5, 0.75])
                found = f"a block takes {ratio:.2f} of its time compiled (compiling took {self.extra_seconds:.0f} s)"
                self._settle(bool(ratio <= GAIN and high < 1), found)

    def _settle(self, on: bool, found: str) -> None:
        self._settled, self._on, self.trying = True, on, False
        self.note = f"torch.compile: {found}; {'used' if on else 'not used'} (logits.compile: auto)"
        if not on:
            self._compiled = []
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
