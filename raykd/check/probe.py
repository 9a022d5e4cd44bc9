"""How fast trainings go on the cluster: real ones, some seconds of each kind, as many at once as there will be."""

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from raykd.check.subset import endless_job, short_job, step_tokens
from raykd.check.workload import Stage
from raykd.common.errors import TrainingError
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.training.events import Done, Evaluated, Event, Failed, Progressed, Restarted, Started
from raykd.training.processes import Training, run_trainings

SECONDS, TELLINGS = 6.0, 4  # a kind's steps are watched for so long, and a training tells of them so often, at least
_SCORED_SECONDS, _SCORED_ROWS = 1.0, (16, 1024)  # a short training scores so many rows as take about so long


@dataclass(frozen=True)
class Pace:
    """Seconds that trainings of one kind take, with as many at once as there will be.

    step, token: an optimizer step takes the one, and the other for each of its tokens. row: a forward pass over one,
    and its scoring. start: until the first step; cold: what it takes longer in a new process. evaluation, end:
    without their rows. fast, slow: what a second's steps take, as a share of that (the 10% and 90% quantiles).
    model_bytes: what a training leaves.
    """

    step: float
    token: float
    row: float
    start: float
    cold: float
    evaluation: float
    end: float
    fast: float
    slow: float
    model_bytes: int

    def seconds(self, job: Job, tokens: float) -> float:
        """A whole training. tokens: of a step, in the mean."""
        evaluations = -(-job.steps // (job.training.eval_every or -(-job.steps // 5)))
        rows = evaluations * len(job.validation.encoded.open()) + (len(job.test.encoded.open()) if job.keep else 0)
        each = self.start + job.steps * (self.step + tokens * self.token) + evaluations * self.evaluation + self.end
        handed_on = sum(len(encoded.open()) for encoded in job.train)  # a born-again student's logits, to the next
        return each + rows * self.row + (job.method.generations - 1) * (each + (rows + handed_on) * self.row)


def kind(training: Training) -> Hashable:
    """What trainings of the same pace have in common."""
    job = training.job
    return job.model_digest, training.resources, job.method.distils, job.training.precision, job.training.accumulation


@dataclass(frozen=True)
class _Seen:
    """What a training has told: when it was at which step. Or, short_job, when it began, evaluated twice, was done."""

    training: Training
    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def job(self) -> Job:
        return self.training.job


def paces(stages: Sequence[Stage], settings: RayConfig, store: Path) -> dict[Hashable, Pace]:
    """By kind. store: an empty folder that all nodes see. Raises UserError if a training fails."""
    found: dict[Hashable, Pace] = {}
    for stage in stages:
        new = {kind(t): t for t in reversed(stage.trainings) if kind(t) not in found}
        while new:
            chosen = [new.pop(name) for name in list(new)[: stage.at_once]]
            beside = islice(cycle(chosen), max(len(chosen), stage.at_once))
            long = [_Seen(Training(endless_job(t.job, store, n), t.resources)) for n, t in enumerate(beside)]
            found |= _measure(long, settings)
    return found


class _Enough(Exception):
    """Enough was seen of trainings that do not end."""


def _measure(long: Sequence[_Seen], settings: RayConfig) -> dict[Hashable, Pace]:
    """Endless trainings until their steps have been seen for a while; then short ones from beginning to end."""

    def enough() -> None:
        if all(len(s.times) >= TELLINGS and s.times[-1] - s.times[0] > SECONDS for s in long):
            raise _Enough

    asked = time.monotonic()
    with suppress(_Enough):
        _run(long, (Progressed,), settings, enough)
    windows: dict[Hashable, list[np.ndarray]] = {kind(s.training): [] for s in long}
    for seen in long:
        windows[kind(seen.training)].append(_windows(seen))
    speeds = {name: nnls(w[:, :2], w[:, 2])[0] for name, w in ((n, np.concatenate(w)) for n, w in windows.items())}

    shorts = []
    for seen in long:
        step = speeds[kind(seen.training)] @ [1, step_tokens(seen.job, 100).mean()]
        wanted = int(3 * _SCORED_SECONDS * seen.job.training.batch_size / step)  # a backward pass is two forward ones
        rows = min(max(wanted, _SCORED_ROWS[0]), _SCORED_ROWS[1])
        shorts += [_Seen(Training(short_job(seen.job, rows, n), seen.training.resources)) for n in (1, 4)]
    _run(shorts, (Started, Evaluated, Done), settings, lambda: None)
    return {
        name: _pace(
            speed,
            np.concatenate(windows[name]),
            asked,
            *([s for s in part if kind(s.training) == name] for part in (long, shorts)),
        )
        for name, speed in speeds.items()
    }


def _run(seen: Sequence[_Seen], timed: tuple[type, ...], settings: RayConfig, check: Callable[[], None]) -> None:
    by_job = {s.job.fingerprint: s for s in seen}

    def on_event(job: Job, event: Event) -> None:
        if isinstance(event, Failed):
            raise TrainingError(event.reason)
        if isinstance(event, Restarted):  # its times so far say nothing of its speed
            raise TrainingError(f"{job.name}: its process died. See Ray's logs")
        if isinstance(event, timed):
            by_job[job.fingerprint].times.append(time.monotonic())
            by_job[job.fingerprint].steps.append(getattr(event, "step", 0))

    run_trainings([s.training for s in seen], settings, on_event, check)


def _windows(seen: _Seen) -> np.ndarray:
    """(n, 3): the steps, tokens and seconds between two times that it has told of itself."""
    tokens = np.concatenate([[0], np.cumsum(step_tokens(seen.job, seen.steps[-1]))])
    return np.stack([np.diff(seen.steps), np.diff(tokens[seen.steps]), np.diff(seen.times)], axis=1)


def _pace(speed: np.ndarray, windows: np.ndarray, asked: float, long: list[_Seen], shorts: list[_Seen]) -> Pace:
    """speed: (2,), seconds of a step and of a token."""
    parts = []  # of each short training: validation and test rows, and seconds
    for s in shorts:
        first, second = speed[0] + speed[1] * step_tokens(s.job, 2)
        began, evaluated, again, done = s.times
        evaluation = again - evaluated - second
        rows = [len(split.encoded.open()) for split in (s.job.validation, s.job.test)]
        parts.append([*rows, evaluated - began - first - evaluation, evaluation, done - again])
    of_many, of_few = (np.mean(parts[n::2], axis=0) for n in (0, 1))
    more = of_many - of_few
    row = max(0.0, (more[3] + more[4]) / max(1, more[0] + more[1]))
    start = np.mean(parts, axis=0)[2]
    cold = [s.times[0] - asked - speed @ [s.steps[0], step_tokens(s.job, s.steps[0]).sum()] - start for s in long]
    spread = np.quantile(windows[:, 2] / (windows[:, :2] @ speed), [0.1, 0.9])
    return Pace(
        step=speed[0],
        token=speed[1],
        row=row,
        start=max(0.0, start),
        cold=max(0.0, np.mean(cold)),
        evaluation=max(0.0, of_few[3] - of_few[0] * row),
        end=max(0.0, of_few[4] - of_few[1] * row),
        fast=min(1.0, spread[0]),
        slow=max(1.0, spread[1]),
        model_bytes=sum(f.stat().st_size for f in (shorts[0].job.folder / "generation-1" / "model").iterdir()),
    )
