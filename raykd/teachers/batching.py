"""Small requests that wait at the same time go through a model together."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

Columns = dict[str, list]


class Batcher:
    """Called from many threads; one thread computes, first come, first served."""

    def __init__(
        self,
        compute: Callable[[Columns, np.ndarray], list[np.ndarray]],
        budget: int,
        on_waiting: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """budget: rows times longest row of what goes together, at most. on_waiting: hears how many requests wait."""
        self.compute, self.budget, self.on_waiting = compute, budget, on_waiting
        self._requests: queue.Queue[tuple[Columns, np.ndarray, Future]] = queue.Queue()
        threading.Thread(target=self._serve, name="batcher", daemon=True).start()

    def __call__(self, columns: Columns, folds: np.ndarray) -> tuple[list[np.ndarray], float]:
        """The rows' logits and the seconds that they took. Raises what `compute` raised."""
        answer: Future = Future()
        self._requests.put((columns, folds, answer))
        return answer.result()

    def _serve(self) -> None:
        held = None  # what did not go with the last ones
        while True:
            group = [held or self._requests.get()]
            held = None
            rows, longest = len(group[0][1]), max(group[0][0]["length"])
            while not self._requests.empty():
                held = self._requests.get()
                rows, longest = rows + len(held[1]), max(longest, *held[0]["length"])
                if rows * longest > self.budget or held[0].keys() != group[0][0].keys():
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
        except BaseException as error:  # each of those who asked hears of it
            for *_, answer in group:
                answer.set_exception(error)
            return
        seconds, start = time.monotonic() - started, 0
        for _, folds, answer in group:
            part = rows[start : start + len(folds)]
            start += len(folds)
            answer.set_result((part, seconds * len(folds) / len(rows)))
