"""Counts of one teacher's precomputation, which are also exported as Ray metrics."""

import time
from collections import Counter
from typing import Any

from raykd.cluster.running import ray_is_running
from raykd.teachers.replica import Progress
from raykd.teachers.requests import BlockAnswer

_METRICS = {
    "teacher_restarts": "replicas that were replaced",
    "store_hits": "rows whose logits were in the store",
    "store_misses": "rows whose logits had to be computed",
}


class PrecomputeCounts:
    """Counts rows, restarts and times of one teacher. See `Progress` for their meaning."""

    def __init__(self, teacher: str, total: int, stored: int) -> None:
        """total: number of rows in blocks to compute. stored: number of rows that were stored before."""
        self.teacher, self.total, self.stored = teacher, total, stored
        self.rows = self.computed = self.restarts = 0
        self.busy_seconds, self.first_ready, self.last_answer = 0.0, 0.0, 0.0
        self._metrics: dict[str, Any] = {}  # Ray's counters
        self._unsent: Counter[str] = Counter()  # counted before Ray was started
        self._export("store_hits", stored)

    @property
    def done(self) -> bool:
        return self.rows == self.total

    @property
    def left(self) -> int:
        """Rows of blocks that have not been answered."""
        return self.total - self.rows

    def on_ready(self) -> None:
        """A replica has loaded."""
        self.first_ready = self.first_ready or time.monotonic()

    def on_answer(self, answer: BlockAnswer) -> None:
        """A block has been stored."""
        self.last_answer = time.monotonic()
        self.rows += answer.rows
        self.computed += answer.computed
        self.busy_seconds += answer.seconds if answer.computed else 0.0
        self._export("store_misses", answer.computed)
        self._export("store_hits", answer.rows - answer.computed)

    def on_restart(self) -> None:
        """A replica was lost and will be replaced."""
        self.restarts += 1
        self._export("teacher_restarts", 1)

    def _export(self, name: str, amount: int) -> None:
        self._unsent[name] += amount
        if not ray_is_running():
            return
        from ray.util import metrics

        for key in [key for key, count in self._unsent.items() if count]:
            if key not in self._metrics:
                self._metrics[key] = metrics.Counter(f"raykd_{key}", _METRICS[key], tag_keys=("teacher",))
            self._metrics[key].inc(self._unsent.pop(key), tags={"teacher": self.teacher})

    def progress(self, replicas: int) -> Progress:
        """replicas: number of loaded replicas."""
        return Progress(
            teacher=self.teacher,
            done=self.rows,
            total=self.total,
            replicas=replicas,
            per_replica=self.computed / self.busy_seconds if self.busy_seconds else 0.0,
            restarts=self.restarts,
            computed=self.computed,
            seconds=self.busy_seconds,
            took=max(0.0, self.last_answer - self.first_ready),
        )

    def add(self, other: "PrecomputeCounts") -> None:
        """Add the work that was done later for the same teacher."""
        self.computed, self.restarts = self.computed + other.computed, self.restarts + other.restarts
        self.busy_seconds += other.busy_seconds
        self.last_answer += other.progress(0).took
