"""How long a training waits for logits, and for which teacher's."""

import math
import time
from collections import deque
from typing import Any

import numpy as np
import torch

from raykd.training.loader import StepLoader


class Throughput:
    """Rows and tokens per second of training, without its evaluations and checkpoints.

    lengths: (N,) tokens of every row that may be trained on; 1 where a row has none, such as a picture.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths
        self.restart()

    def restart(self) -> None:
        self._since, self._rows, self._tokens = time.monotonic(), 0, 0

    def add(self, positions: np.ndarray) -> None:
        """positions: of a step's rows, all workers'."""
        self._rows += len(positions)
        self._tokens += int(self.lengths[positions].sum())

    def rates(self) -> dict[str, float]:
        """Since the last restart, including waits for logits; {} if no step was done."""
        if not self._rows:
            return {}
        seconds = max(time.monotonic() - self._since, 1e-9)
        rates = {"rows_per_s": self._rows / seconds}
        if self.lengths.max() > 1:
            rates["tokens_per_s"] = self._tokens / seconds
        return rates


class WaitMeter:
    """Measures how long the device is idle because the loader waits for logits.

    While the loader waits, a GPU can still be busy with the last step; that time does not count.
    """

    def __init__(self, loader: StepLoader, batch_size: int) -> None:
        self.loader, self.batch_size = loader, batch_size
        self.waited: dict[str, float] = {}  # seconds that the device was idle, by teacher
        self._counted: dict[str, float] = {}  # the loader's waits so far that are in `waited` or in `_open`
        self._open: deque[tuple[dict[str, float], torch.cuda.Event | None, torch.cuda.Event | None]] = deque()
        self._ended: torch.cuda.Event | None = None
        self._steps, self._seconds, self._waited = 0, 0.0, {}  # type: int, float, dict[str, float]
        self._last: int | None = None
        self.restart()

    def step_begins(self) -> None:
        """Call it once a step's logits have arrived."""
        if not self.loader.job.method.distils:
            return
        lately = {name: value - self._counted.get(name, 0.0) for name, value in self.loader.waited.items()}
        self._counted = dict(self.loader.waited)
        self._open.append((lately, self._ended, self._mark()))

    def step_ends(self) -> None:
        """Call it once all of a step's work is queued on the device."""
        self._ended = self._mark()

    def _mark(self) -> torch.cuda.Event | None:
        if self.loader.context.device.type != "cuda" or not self.loader.job.method.distils:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.loader.context.device))
        return event

    def _settle(self) -> None:
        while self._open and ((begun := self._open[0][2]) is None or begun.query()):
            lately, ended, _ = self._open.popleft()
            idle = ended.elapsed_time(begun) / 1000 if ended and begun else math.inf
            for name, value in lately.items():
                self.waited[name] = self.waited.get(name, 0.0) + min(value, idle)

    def restart(self) -> None:
        self._settle()
        self._since, self._then, self._rows = time.monotonic(), dict(self.waited), self.loader.rows()

    def since_last(self, done: int) -> dict[str, float]:
        """For the log, since the last call: the share of waits and, live, requests in flight and each teacher's rows/s.

        {} if the method does not distil.

        done: optimizer steps done.
        """
        if not self.loader.job.method.distils:
            return {}
        self._settle()
        seconds = max(time.monotonic() - self._since, 1e-9)
        lately = {name: value - self._then.get(name, 0.0) for name, value in self.waited.items()}
        if self._last is not None:  # until then it waited for the teachers to be loaded
            for name, value in lately.items():
                self._waited[name] = self._waited.get(name, 0.0) + value
            self._seconds += seconds
            self._steps += done - self._last
        self._last = done
        values = {"waited_share": min(1.0, max(lately.values(), default=0.0) / seconds)}
        if self.loader.live is not None:
            values["requests_in_flight"] = float(self.loader.live.in_flight)
            for name, rows in self.loader.rows().items():  # of all workers, assuming that they are alike
                values[f"rows_per_s/{name}"] = (rows - self._rows.get(name, 0)) * self.loader.context.world / seconds
        self.restart()
        return values

    def summary(self) -> dict[str, Any]:
        """The teacher that it waited for most since the second logged step; {} if it never waited.

        share: of the time.
        rows_per_s: what all workers could take without waiting.
        per_replica, replicas: of a live teacher, its rows/s and their number.
        """
        if not any(self._waited.values()):
            return {}
        teacher = max(self._waited, key=lambda name: self._waited[name])
        worked = max(self._seconds - self._waited[teacher], 1e-9)
        share = self._waited[teacher] / max(self._seconds, 1e-9)
        rows_per_s = self._steps * self.batch_size / worked
        summary = {"teacher": teacher, "share": share, "seconds": self._seconds, "rows_per_s": rows_per_s}
        if self.loader.live is not None:
            client = next(client for client in self.loader.live.clients if client.name == teacher)
            summary["per_replica"] = client.rows / client.seconds if client.seconds else 0.0
            summary["replicas"] = len(client.actors)
        return summary
