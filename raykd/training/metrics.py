"""The metrics of each training step: collected for the log, and checked to be finite."""

from collections import deque
from dataclasses import dataclass
from typing import NoReturn

import datasets
import numpy as np
import torch

from raykd.common.errors import DivergedError
from raykd.common.transfer import ToHost
from raykd.plan.job import Job, settings_key
from raykd.training.agreement import Counts
from raykd.training.waits import WaitMeter

LOGGED_STEPS = 400  # points of a training's loss curve, at most


@dataclass(frozen=True)
class _Step:
    """A step whose numbers are being copied to the host."""

    number: int
    positions: np.ndarray
    rate: float
    alpha: float
    counts: Counts
    numbers: ToHost


class TrainMetrics:
    """On a GPU, numbers are read one step late so that the host never synchronizes with the device.

    loss: of the last step that was read.
    seen: decisions that correctness weighting has looked at so far ("weighed"), and those that it changed ("changed").
    """

    def __init__(self, job: Job, rows: datasets.Dataset, wait_meter: WaitMeter, device: torch.device) -> None:
        self.job, self.rows, self.wait_meter = job, rows, wait_meter
        self.behind = 1 if device.type == "cuda" else 0  # steps
        self.log_every = max(1, job.steps // LOGGED_STEPS)
        self.seen = {"changed": 0, "weighed": 0}
        self.loss: float | None = None
        self._history: list[tuple[int, dict[str, float]]] = []
        self._pending: deque[_Step] = deque()

    def add(
        self,
        number: int,
        positions: np.ndarray,
        rate: float,
        alpha: float,
        counts: Counts,
        numbers: torch.Tensor,
    ) -> None:
        """Call it before the optimizer's step. All values are those of all workers.

        Raises DivergedError if the loss or the gradient's norm is not finite in this step or, on a GPU, the last one.

        number: of the step, from 0.
        positions: of the step's rows.
        rate: learning rate.
        alpha: weight of the teachers' term.
        numbers: (4,) loss, gradient's norm, distillation, label, on the device.
        """
        self._pending.append(_Step(number, positions, rate, alpha, counts, ToHost(numbers)))
        while len(self._pending) > self.behind:
            self._read(self._pending.popleft())

    def catch_up(self) -> None:
        """Read every step that has not been read yet."""
        while self._pending:
            self._read(self._pending.popleft())

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """The logged steps since the last call: steps done, and their values."""
        taken, self._history = self._history, []
        return taken

    def _read(self, step: _Step) -> None:
        loss, norm, distillation, label = step.numbers.get().tolist()
        for what, value in (("the loss", loss), ("the gradient's norm", norm)):
            if not np.isfinite(value):
                self._raise_diverged(step, what, value)
        self.loss = loss
        self.seen["changed"] += int(step.counts.changed)
        self.seen["weighed"] += int(step.counts.weighed)
        done = step.number + 1
        if done % self.log_every and done != self.job.steps:
            return
        values = {
            "loss": loss,
            "label": label,
            "learning_rate": step.rate,
            "gradient_norm": norm,
            "alpha": step.alpha,
        }
        if step.alpha > 0:
            values["distillation"] = distillation
        if self.seen["weighed"]:
            values["changed_share"] = self.seen["changed"] / self.seen["weighed"]
        self._history.append((done, values | self.wait_meter.since_last(done)))

    def _raise_diverged(self, step: _Step, what: str, value: float) -> NoReturn:
        functions = self.job.method.own_functions
        own = "".join(f" and at {key} = {path}" for key, path in functions.items() if key == "method.divergence")
        raise DivergedError(
            f"{self.job.name}: {what} is {value} at step {step.number + 1}, learning rate {step.rate:.3g}, "
            f"{self._user_rows(step.positions)}. Lower {settings_key(self.job.key)}.training.learning_rate, or look at "
            f"these rows{own}; no step was taken on it."
        )

    def _user_rows(self, positions: np.ndarray) -> str:
        """The user's rows that some encoded ones come from, by their split, in words."""
        ends = np.cumsum([len(encoded.open()) for encoded in self.job.train])
        splits, found = np.searchsorted(ends, positions, side="right"), []
        for i, name in enumerate(("train", "transfer")[: len(ends)]):
            if len(own := positions[splits == i]):
                examples = sorted({int(e) for e in self.rows.select_columns("example")[own]["example"]})
                found.append(f"rows {examples} of data.{name}")
        # The numbers in the user's file are only in the raw rows, which no training reads.
        left_out = ", counted without those that task.long leaves out" if self.job.task.long == "drop" else ""
        return " and ".join(found) + left_out
