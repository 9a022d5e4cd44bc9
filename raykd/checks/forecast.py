"""Estimates the time of a command from its workload and from speeds measured on the cluster."""

import dataclasses
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raykd.checks.dry_run import Overheads, makespan, measure_overheads
from raykd.checks.kept import state_sizes
from raykd.checks.probe import Limit, Timings, kind, measure_timings
from raykd.checks.subset import step_tokens
from raykd.checks.typical import RAY_SECONDS, UNSURE, dry_run_seconds, typical_overheads
from raykd.checks.workload import Precompute, Stage, Workload
from raykd.cluster.resources import Resources
from raykd.config.schema import Config
from raykd.data.source import quiet_datasets
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.training.access import Training

log = logging.getLogger(__name__)
# In the dry run a teacher gets as many rows as take about so many seconds, within these limits.
_DRY_RUN_SECONDS, _DRY_RUN_ROWS = 2.0, (64, 1024)
_COUNTED_STEPS = 500  # steps whose tokens are counted; their mean is accurate enough


Seconds = tuple[float, float, float]  # expected; with the fastest and with the slowest steps that were measured


@dataclass(frozen=True)
class Line:
    """A line of the estimate. seconds: wall time. device_seconds: summed over all devices that it holds."""

    name: str
    seconds: Seconds
    device_seconds: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """The estimate of a command.

    lines: one per stage, in order.
    skipped: number of trials that the budget does not allow.
    model_bytes: size of the models that are kept.
    device: GPU or CPU, the devices in `device_seconds`.
    probe_seconds: how long measuring took, with the start of Ray.
    typical: seconds that were not measured, because that would have exceeded the limit of time; 0 if all were.
    limit_seconds: how long measuring might take.
    """

    lines: list[Line]
    skipped: int
    model_bytes: int
    device: str
    probe_seconds: float
    typical: float
    limit_seconds: float

    @property
    def seconds(self) -> Seconds:
        likely, least, most = (sum(line.seconds[i] for line in self.lines) for i in range(3))
        return likely, least, most

    @property
    def device_seconds(self) -> float:
        return sum(line.device_seconds for line in self.lines)


def measure(
    config: Config, prepared: Prepared, workload: Workload, gpus: float, started: float, began: float
) -> Estimate:
    """Measure speeds on the connected cluster and estimate the command's time. Leaves no files.

    What trainings and teachers do not do themselves, such as the start of processes and MLflow, is measured by a dry
    run if there is time for one. Otherwise it is as on a typical machine.

    started: seconds from the start of a command until Ray is connected.
    began: when Ray was about to start (`time.monotonic`).
    """
    stages = [workload.teachers, *workload.students]
    limit = Limit(began, stages)
    starting = time.monotonic() - began  # of a local Ray, unless it was running already
    speed = 1.0 if config.ray.cluster or starting < 1 else starting / RAY_SECONDS
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=config.store))  # in the store, which all nodes share
    folder.chmod(0o755)
    try:
        with quiet_datasets():
            measured = measure_timings(stages, config.ray, folder / "timings", limit, state_sizes(config, prepared))
            room, timings = True, list(measured.values())
            if timings:
                overheads = typical_overheads(config, prepared, workload, timings, speed)
                estimate = _Forecast(config, workload, measured, overheads, gpus).estimate(started, limit)
                limit.expected = estimate.seconds[0]
                dry_run = dry_run_seconds(config, workload, timings, overheads)
                room = time.monotonic() - began + dry_run <= limit.seconds
            if room:
                slowest = max((timing.row for timing in measured.values()), default=0.0)
                least, most = _DRY_RUN_ROWS
                rows = max(least, min(most, int(_DRY_RUN_SECONDS / slowest))) if slowest else least
                overheads = measure_overheads(config, prepared, workload, rows, gpus, folder / "dry_run")
                estimate = _Forecast(config, workload, measured, overheads, gpus).estimate(started, limit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    log.debug("started after %.1f s; %s; %s", started, list(measured.values()), overheads)
    return estimate


def rounds_seconds(rounds: Sequence[Sequence[float]], takes_over: bool) -> float:
    """Seconds of the teachers' rounds. rounds: the seconds of each teacher. takes_over: see `Workload`."""
    if takes_over:
        return makespan([each for round_ in rounds for each in round_], at_once=len(rounds[0]))[0]
    return sum(max(round_, default=0.0) for round_ in rounds)


class _Forecast:
    """Adds up the times of a workload. timings: by kind of training."""

    def __init__(
        self, config: Config, workload: Workload, timings: Mapping[Hashable, Timings], overheads: Overheads, gpus: float
    ) -> None:
        self.config, self.workload, self.timings, self.overheads = config, workload, timings, overheads
        self.live = config.logits.mode == "live"
        # A local Ray starts its worker processes while MLflow is being opened.
        self.local = not config.ray.cluster
        stages = [workload.teachers, *workload.students]
        held = [t.resources for stage in stages for t in stage.trainings] + [p.size for p in workload.precomputes]
        self.device = "GPU" if any(size.num_gpus for size in held) else "CPU"
        self._tokens: dict[Hashable, float] = {}
        self.skipped = 0

    def estimate(self, started: float, limit: Limit) -> Estimate:
        workload, overheads = self.workload, self.overheads
        teachers, precompute = self._stage(workload.teachers, "teacher"), self._precompute()
        roles = ["trial", "student"] if workload.command == "sweep" else ["student"]
        students = [self._stage(stage, role) for stage, role in zip(workload.students, roles, strict=True)]
        if workload.overlap and workload.students[0].trainings:  # only the longer of the two counts
            rows = precompute.seconds[0] - overheads.round_start
            precompute = dataclasses.replace(precompute, seconds=(overheads.round_start,) * 3)
            likely, least, most = (max(rows, each) for each in students[0].seconds)
            students[0] = dataclasses.replace(students[0], seconds=(likely, least, most))
        again = len(workload.students[-1].trainings) + workload.students[-1].done
        runs = len(self.config.teachers) + again * (2 if workload.command == "distill" and self.config.baseline else 1)
        first = next(
            (self.timings[kind(s.trainings[0])] for s in (workload.teachers, *workload.students) if s.trainings), None
        )
        cold = first.cold if first else 0.0
        at_first = max(overheads.begin, cold) if self.local else overheads.begin + cold
        own = at_first + overheads.end + overheads.run * max(0, runs - overheads.runs)
        ends, typical = started + own, 0.0
        if overheads.typical:
            typical = own + sum(overheads.stages.values()) + overheads.round_start * workload.round_starts
        unsure = UNSURE * typical
        lines = [teachers, precompute, *students, Line("start and end", (ends, ends - unsure, ends + unsure))]
        kept = [t for s in (workload.teachers, *workload.students) for t in s.trainings if t.job.keep_model]
        models = sum(self.timings[kind(t)].model_bytes * t.job.method.generations for t in kept)
        measured = time.monotonic() - limit.began
        return Estimate(lines, self.skipped, models, self.device, measured, typical, limit.seconds)

    def _stage(self, stage: Stage, role: str) -> Line:
        if not stage.trainings:  # teachers and ensemble are scored even if no training is left
            longer = 0.0 if role == "teacher" else self.overheads.stages.get(role, 0.0)
            return Line(stage.name, (longer,) * 3)
        search = self.config.search
        limit = 3600 * search.hours if role == "trial" and search.hours is not None else float("inf")
        alike = Counter[Resources]()  # seen so far: a GPU's process is passed on to one with the same resources
        new = []
        for training in stage.trainings:
            new.append(alike[training.resources] < stage.at_once)
            alike[training.resources] += 1
        each = [
            [self._seconds(t, role, how, first) for t, first in zip(stage.trainings, new, strict=True)]
            for how in ("likely", "fast", "slow")
        ]
        held = np.array([self._devices(t.resources) for t in stage.trainings]) * each[0]
        if role == "trial" and search.gpu_hours is not None and self.device == "GPU":
            within = int(np.searchsorted(np.cumsum(held), 3600 * search.gpu_hours)) + 1
            each = [seconds[:within] for seconds in each]
        walls, counts = zip(*(makespan(seconds, stage.at_once, limit) for seconds in each), strict=True)
        self.skipped += len(stage.trainings) - counts[0]
        likely, least, most = (wall + self.overheads.stages.get(role, 0.0) for wall in walls)
        return Line(stage.name, (likely, least, most), float(held[: counts[0]].sum()))

    def _seconds(self, training: Training, role: str, how: str, new: bool) -> float:
        """new: whether, on a GPU, it starts a process of its own; otherwise it takes over an earlier training's."""
        timing, job, size = self.timings[kind(training)], training.job, training.resources
        factor = {"likely": 1.0, "fast": timing.fast, "slow": timing.slow}[how]
        timing = dataclasses.replace(timing, step=timing.step * factor, token=timing.token * factor)
        tokens = self._mean_tokens(job)
        seconds = timing.seconds(job, tokens)
        if self.live and job.method.distils:  # the teachers serve all running students
            slowest = max(self._pass(p) / p.replicas for p in self.workload.precomputes)
            serving = self.workload.students[0].at_once * job.training.batch_size * slowest
            seconds += job.steps * max(0.0, serving - timing.step - tokens * timing.token)
        if role == "trial":
            return seconds + self.overheads.between
        return seconds + (timing.cold if new and size.num_gpus and size.workers == 1 else 0.0)

    def _mean_tokens(self, job: Job) -> float:
        seen = job.train, job.training.batch_size, job.training.group_by_length, min(job.steps, _COUNTED_STEPS)
        if seen not in self._tokens:
            self._tokens[seen] = float(step_tokens(job, seen[-1]).mean())
        return self._tokens[seen]

    def _precompute(self) -> Line:
        rounds, held = list[list[float]](), 0.0
        for round_ in self.workload.rounds:
            work = [(p, p.passes * self._pass(p)) for p in round_ if p.rows]
            rounds.append([each / p.replicas for p, each in work])
            held += sum(each * self._devices(p.size) for p, each in work)
        seconds = self.overheads.round_start * self.workload.round_starts
        seconds += rounds_seconds(rounds, self.workload.takes_over)
        return Line("logits", (seconds, seconds, seconds), held)

    def _pass(self, precompute: Precompute) -> float:
        passes = self.overheads.passes
        return passes.get(precompute.teacher, max(passes.values()))

    def _devices(self, size: Resources) -> float:
        return size.workers * (size.num_gpus if self.device == "GPU" else size.num_cpus)
