"""Requests that wait at the same time go through the model in one batch."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

Columns = dict[str, list]


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
        self._requests: queue.Queue[tuple[Columns, np.ndarray, Future]] = queue.Queue()
        threading.Thread(target=self._serve, name="batcher", daemon=True).start()

    def __call__(self, columns: Columns, folds: np.ndarray) -> tuple[list[np.ndarray], float]:
        """Logits of each row, and this request's share of the seconds of its batch. Raises what `compute` raised."""
        answer: Future = Future()
        self._requests.put((columns, folds, answer))
        return answer.result()

    def _serve(self) -> None:
        held = None  # a request that did not fit into the last batch
        while True:
            group = [held or self._requests.get()]
            held = None
            rows, longest = len(group[0][1]), max(group[0][0]["length"])
            budget = self.budget // self.tokens_per_length(group[0][0])
            while not self._requests.empty():
                held = self._requests.get()
                rows, longest = rows + len(held[1]), max(longest, *held[0]["length"])
                if rows * longest > budget or held[0].keys() != group[0][0].keys():
                    break
                group.append(held)
                held = None
            self.on_waiting(self._requests.qsize() + (held is not None))
            self._answer(group)

    def _answer(self, group: list[tuple[Columns, np.ndarray, Future]]) -> None:
        started = time.monotonic()
        try:
            merged = {name: [v for columns, *_ in group for v in columns[name]] for name in group[0][0]}
            rows = self.compute(merged, np.concatenate([folds for _, folds, _ in group]))
        except BaseException as error:  # raised in every thread that waits for this batch
            for *_, answer in group:
                answer.set_exception(error)
            return
        seconds, start = time.monotonic() - started, 0
        for _, folds, answer in group:
            part = rows[start : start + len(folds)]
            start += len(folds)
            answer.set_result((part, seconds * len(folds) / len(rows)))
