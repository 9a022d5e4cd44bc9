"""Measures the speed of trainings on the cluster, with the command's concurrency, within a limit of time."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from raykd.checks.subset import short_job, step_tokens
from raykd.checks.workload import Stage
from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.training.access import Training
from raykd.training.endless import endless_job
from raykd.training.events import Done, Evaluated, Event, Failed, Progressed, Restarted, Started
from raykd.training.launch import run_trainings

# Measuring may take so many seconds, or this share of what is estimated if that is longer.
LEAST_SECONDS, SHARE = 20.0, 0.25
# Steps are observed for so many seconds, but for less if their mean time is known to this relative standard error, and
# if the time that measuring may take is nearly over. At least so many events of each training are observed.
SECONDS, SURE, MIN_EVENTS = 6.0, 0.02, 3
_OF_STEPS = 0.6  # share of the time that may be over when the steps have been observed
# A short training scores as many rows as take about this share of the time, at most so many seconds, within limits.
_OF_SCORES, _SCORED_SECONDS, _SCORED_ROWS = 0.02, 1.0, (16, 1024)


@dataclass(frozen=True)
class Timings:
    """Times of trainings of one kind, in seconds, measured with the command's concurrency.

    step: of an optimizer step, besides its tokens.
    token: of each token of a step.
    row: of predicting and scoring one row.
    start: from the start of a training to its first step.
    cold: added to `start` in a new process.
    evaluation: of an evaluation, besides its rows.
    end: from the last step to the end, besides the rows scored.
    fast, slow: 10% and 90% quantiles of the time of steps, relative to the mean.
    model_bytes: size of a trained model on disk.
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
        """Seconds of a whole training. tokens: mean tokens of a step."""
        evaluations = -(-job.steps // (job.training.eval_every or -(-job.steps // 5)))
        rows = evaluations * len(job.validation.encoded.open()) + (
            len(job.test.encoded.open()) if job.keep_model else 0
        )
        each = self.start + job.steps * (self.step + tokens * self.token) + evaluations * self.evaluation + self.end
        # A born-again student predicts the training rows for the next generation.
        transferred = sum(len(encoded.open()) for encoded in job.train)
        return each + rows * self.row + (job.method.generations - 1) * (each + (rows + transferred) * self.row)


def kind(training: Training) -> Hashable:
    """A key that is equal for trainings of the same speed."""
    job = training.job
    # With hidden states, each teacher costs a matmul with its head in every step; stored logits cost next to nothing.
    taught = len(job.teachers) if job.keep.form == "hidden" else bool(job.teachers)
    setting, lora = job.training, job.lora
    parts = lora and (lora.r, str(lora.target_modules), lora.dropout > 0, lora.save)  # alpha costs nothing
    modes = (setting.precision, setting.accumulation, setting.gradient_checkpointing, setting.compile, parts)
    return job.model_digest, training.resources, taught, *modes


@dataclass
class _Observed:
    """The times at which a training sent events, and its steps then.

    The events are Progressed of an endless training, and the start, two evaluations and the end of a short one.

    reused: whether another training has run in its process before.
    """

    training: Training
    reused: bool = False
    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def job(self) -> Job:
        return self.training.job


class Limit:
    """The time that measuring may take."""

    def __init__(self, began: float, stages: Sequence[Stage] = ()) -> None:
        """began: when Ray was about to start (`time.monotonic`). stages: the command's."""
        self.began, self.stages = began, stages
        self.expected = 0.0  # seconds that the command takes, as far as is known

    @property
    def seconds(self) -> float:
        return max(LEAST_SECONDS, SHARE * self.expected)

    def over(self, share: float = 1.0) -> bool:
        """Whether this share of the time is over."""
        return time.monotonic() - self.began > share * self.seconds

    def expect(self, step: float) -> None:
        """Note the seconds of an optimizer step."""
        steps = (sum(t.job.steps * t.job.method.generations for t in s.trainings) / s.at_once for s in self.stages)
        self.expected = step * sum(steps)


def measure_timings(
    stages: Sequence[Stage], settings: RayConfig, store: Path, limit: Limit, states: Mapping[str, int]
) -> dict[Hashable, Timings]:
    """Timings by kind of training. Raises UserError if a training fails.

    Kinds with the same resources and the same concurrency are measured beside one another.

    store: an empty folder that all nodes share.
    states: where hidden states are kept, the size of each teacher's, by name.
    """
    kinds: dict[tuple[int, frozenset[Resources]], dict[Hashable, Training]] = {}  # those that are measured together
    known: set[Hashable] = set()
    for stage in stages:
        for training in stage.trainings:
            if kind(training) not in known:
                known.add(kind(training))
                together = stage.at_once, frozenset(t.resources for t in stage.trainings)
                kinds.setdefault(together, {})[kind(training)] = training
    groups: list[list[Training]] = []
    for (at_once, _), new in kinds.items():
        chosen = list(new.values())
        for first in range(0, len(chosen), at_once):
            group = chosen[first : first + at_once]
            groups.append(list(islice(cycle(group), max(len(group), at_once))))
    timings: dict[Hashable, Timings] = {}
    for number, group in enumerate(groups, 1):
        long = [
            _Observed(Training(endless_job(t.job, store, n, states=states), t.resources)) for n, t in enumerate(group)
        ]
        timings |= _measure(long, settings, limit, number / len(groups))
    return timings


class _Enough(Exception):
    """Raised when endless trainings have been observed for long enough."""


def _measure(
    long: Sequence[_Observed], settings: RayConfig, limit: Limit, share: float = 1.0
) -> dict[Hashable, Timings]:
    """Observe the steps of endless trainings for a while, then short trainings from start to end.

    share: of the limit, after which this must be over.
    """

    def enough() -> None:
        if all(len(s.times) >= MIN_EVENTS for s in long):
            seconds = [np.diff(s.times) / np.diff(s.steps) for s in long]
            limit.expect(float(np.mean([each.mean() for each in seconds])))
            sure = all(each.std(ddof=1) <= SURE * each.mean() * len(each) ** 0.5 for each in seconds)
            observed = min(s.times[-1] - s.times[0] for s in long)
            if observed > SECONDS or limit.over(_OF_STEPS * share) or (sure and observed > SECONDS / 2):
                raise _Enough

    launched, processes = time.monotonic(), set[int]()
    with suppress(_Enough):
        _run(long, (Progressed,), settings, enough, processes)
    windows: dict[Hashable, list[np.ndarray]] = {kind(s.training): [] for s in long}
    for observed in long:
        windows[kind(observed.training)].append(_windows(observed))
    costs = {name: nnls(w[:, :2], w[:, 2])[0] for name, w in ((n, np.concatenate(w)) for n, w in windows.items())}

    shorts = []
    scored_seconds = min(_SCORED_SECONDS, _OF_SCORES * share * limit.seconds)
    for observed in long:
        step = costs[kind(observed.training)] @ [1, step_tokens(observed.job, 100).mean()]
        # A backward pass takes about as long as two forward passes.
        scored_rows = int(3 * scored_seconds * observed.job.training.batch_size / step)
        rows = min(max(scored_rows, _SCORED_ROWS[0]), _SCORED_ROWS[1])
        shorts += [_Observed(Training(short_job(observed.job, rows, n), observed.training.resources)) for n in (1, 4)]
    _run(shorts, (Started, Evaluated, Done), settings, lambda: None, processes)
    return {
        name: _timings(
            cost,
            np.concatenate(windows[name]),
            launched,
            *([s for s in part if kind(s.training) == name] for part in (long, shorts)),
        )
        for name, cost in costs.items()
    }


def _run(
    observed: Sequence[_Observed],
    timed: tuple[type, ...],
    settings: RayConfig,
    check: Callable[[], None],
    processes: set[int],
) -> None:
    """processes: the ids of those in which trainings have run before; new ones are added."""
    by_job = {s.job.fingerprint: s for s in observed}

    def on_event(job: Job, event: Event) -> None:
        if isinstance(event, Failed):
            raise TrainingError(event.reason)
        if isinstance(event, Restarted):  # its times so far are useless
            raise TrainingError(f"{job.name}: its process died. See Ray's logs")
        if isinstance(event, Started):
            by_job[job.fingerprint].reused = event.pid in processes
            processes.add(event.pid)
        if isinstance(event, timed):
            by_job[job.fingerprint].times.append(time.monotonic())
            by_job[job.fingerprint].steps.append(getattr(event, "step", 0))

    run_trainings([s.training for s in observed], settings, on_event, check)


def _windows(observed: _Observed) -> np.ndarray:
    """(n, 3): the steps, tokens and seconds between each two consecutive events."""
    tokens = np.concatenate([[0], np.cumsum(step_tokens(observed.job, observed.steps[-1]))])
    return np.stack([np.diff(observed.steps), np.diff(tokens[observed.steps]), np.diff(observed.times)], axis=1)


def _timings(
    cost: np.ndarray, windows: np.ndarray, launched: float, long: list[_Observed], shorts: list[_Observed]
) -> Timings:
    """Combine the observations of one kind of training.

    cost: (2,) seconds of a step and of a token.
    windows: (n, 3), see `_windows`.
    launched: when the endless trainings were launched.
    """
    parts = []  # of each short training: rows of validation and test; seconds of start, evaluation and end
    for s in shorts:
        first, second = cost[0] + cost[1] * step_tokens(s.job, 2)
        began, evaluated, again, done = s.times
        evaluation = again - evaluated - second
        rows = [len(split.encoded.open()) for split in (s.job.validation, s.job.test)]
        parts.append([*rows, evaluated - began - first - evaluation, evaluation, done - again])
    of_many, of_few = (np.mean(parts[n::2], axis=0) for n in (0, 1))
    more = of_many - of_few
    row = max(0.0, (more[3] + more[4]) / max(1, more[0] + more[1]))
    # A new process also imports what the model needs, and on a GPU opens it: that is part of `cold`.
    warm = [part for part, s in zip(parts, shorts, strict=True) if s.reused]
    start = np.mean(warm or parts, axis=0)[2]
    cold = [s.times[0] - launched - cost @ [s.steps[0], step_tokens(s.job, s.steps[0]).sum()] - start for s in long]
    spread = np.quantile(windows[:, 2] / (windows[:, :2] @ cost), [0.1, 0.9])
    return Timings(
        step=cost[0],
        token=cost[1],
        row=row,
        start=max(0.0, start),
        cold=max(0.0, np.mean(cold)),
        evaluation=max(0.0, of_few[3] - of_few[0] * row),
        end=max(0.0, of_few[4] - of_few[1] * row),
        fast=min(1.0, spread[0]),
        slow=max(1.0, spread[1]),
        model_bytes=sum(f.stat().st_size for f in (shorts[0].job.folder / "generation-1" / "model").iterdir()),
    )
