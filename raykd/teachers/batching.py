"""Requests that wait at the same time go through the model in one batch."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Columns = dict[str, list]


@dataclass(frozen=True)
class _Request:
    """Rows that wait. longest: tokens of the longest row."""

    columns: Columns
    folds: np.ndarray
    longest: int
    answer: Future = field(default_factory=Future)


class Batcher:
    """Called from many threads. One thread computes, in the order in which requests arrive."""

    def __init__(
        self,
        compute: Callable[[Columns, np.ndarray], list[np.ndarray]],
        budget: int,
        on_waiting: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """Start the thread that computes.

        compute: rows' columns and folds to their logits.
        budget: limit of a merged batch, as number of rows times tokens of the longest row.
        on_waiting: called before each batch with the number of requests that are still waiting.
        """
        self.tokens_per_length: Callable[[Columns], int] = lambda columns: 1  # the served task's
        self.compute, self.budget, self.on_waiting = compute, budget, on_waiting
        self._requests: queue.Queue[_Request] = queue.Queue()
        threading.Thread(target=self._serve, name="batcher", daemon=True).start()

    def __call__(self, columns: Columns, folds: np.ndarray) -> tuple[list[np.ndarray], float]:
        """Logits of each row, and this request's share of the seconds of its batch. Raises what `compute` raised."""
        longest = max(columns["length"]) * self.tokens_per_length(columns)
        request = _Request(columns, folds, longest)
        self._requests.put(request)
        return request.answer.result()

    def _serve(self) -> None:
        held = None  # a request that did not fit into the last batch
        while True:
            group = [held or self._requests.get()]
            held = None
            rows, longest = len(group[0].folds), group[0].longest
            while not self._requests.empty():
                held = self._requests.get()
                rows, longest = rows + len(held.folds), max(longest, held.longest)
                if rows * longest > self.budget or held.columns.keys() != group[0].columns.keys():
                    break
                group.append(held)
                held = None
            self.on_waiting(self._requests.qsize() + (held is not None))
            self._answer(group)

    def _answer(self, group: list[_Request]) -> None:
        started = time.monotonic()
        try:
            merged = {name: [v for one in group for v in one.columns[name]] for name in group[0].columns}
            rows = self.compute(merged, np.concatenate([one.folds for one in group]))
        except BaseException as error:  # raised in every thread that waits for this batch
            for one in group:
                one.answer.set_exception(error)
            return
        seconds, start = time.monotonic() - started, 0
        for one in group:
            part = rows[start : start + len(one.folds)]
            start += len(one.folds)
            one.answer.set_result((part, seconds * len(one.folds) / len(rows)))
