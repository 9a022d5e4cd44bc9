"""What a command takes, before it is started: counted, and timed from a probe on the cluster itself."""

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raykd.check.dry_run import Overheads, around, makespan
from raykd.check.probe import Pace, kind, paces
from raykd.check.subset import step_tokens
from raykd.check.workload import Fill, Needs, Stage
from raykd.cluster.resources import Resources
from raykd.config.schema import Config
from raykd.data.loading import quiet_datasets
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.training.processes import Training

log = logging.getLogger(__name__)
_FILLED_SECONDS, _FILLED_ROWS = 2.0, (64, 1024)  # in miniature a teacher sees so many rows as take about so long
_LOOKED_AT = 500  # steps whose tokens are counted: the mean of more would be the same


Seconds = tuple[float, float, float]  # as likely as not; at the fastest and at the slowest that the probe has seen


@dataclass(frozen=True)
class Line:
    """A stage: its wall time, and the seconds that it holds devices, all of them together."""

    name: str
    seconds: Seconds
    held: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """lines: as they follow one another. cut: trials that the budget leaves out. model_bytes: of the models that stay.

    device: what `held` counts, GPU or CPU. probe: the seconds that it took.
    """

    lines: list[Line]
    cut: int
    model_bytes: int
    device: str
    probe: float

    @property
    def seconds(self) -> Seconds:
        likely, least, most = (sum(line.seconds[i] for line in self.lines) for i in range(3))
        return likely, least, most

    @property
    def held(self) -> float:
        return sum(line.held for line in self.lines)


def measure(config: Config, prepared: Prepared, needs: Needs, gpus: float, started: float) -> Estimate:
    """Probe the cluster that is connected. started: seconds that a command takes until it is. Nothing stays of it."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=config.store))  # in the store, which all nodes see
    folder.chmod(0o755)
    try:
        with quiet_datasets():
            found = paces([needs.teachers, *needs.students], config.ray, folder / "paces")
            slowest = max((pace.row for pace in found.values()), default=0.0)
            least, most = _FILLED_ROWS
            rows = max(least, min(most, int(_FILLED_SECONDS / slowest))) if slowest else least
            beside = around(config, prepared, needs, rows, gpus, folder / "miniature")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    log.debug("started after %.1f s; %s; %s", started, list(found.values()), beside)
    return _Arithmetic(config, needs, found, beside, gpus).estimate(started, began)


class _Arithmetic:
    """paces: by kind of training. around: what is not in them."""

    def __init__(
        self, config: Config, needs: Needs, found: Mapping[Hashable, Pace], beside: Overheads, gpus: float
    ) -> None:
        self.config, self.needs, self.paces, self.around = config, needs, found, beside
        self.live = config.logits.mode == "live"
        # A Ray that is started for the command alone gets its processes ready while MLflow is opened.
        self.local = not config.ray.cluster
        stages = [needs.teachers, *needs.students]
        held = [t.resources for stage in stages for t in stage.trainings] + [fill.size for fill in needs.fills]
        self.device = "GPU" if any(size.num_gpus for size in held) else "CPU"
        self._tokens: dict[Hashable, float] = {}
        self.cut = 0

    def estimate(self, started: float, began: float) -> Estimate:
        needs, around = self.needs, self.around
        teachers, fill = self._stage(needs.teachers, "teacher"), self._fill()
        roles = ["trial", "student"] if needs.command == "sweep" else ["student"]
        students = [self._stage(stage, role) for stage, role in zip(needs.students, roles, strict=True)]
        if needs.beside and needs.students[0].trainings:  # whichever takes longer
            rows = fill.seconds[0] - around.turn
            fill = dataclasses.replace(fill, seconds=(around.turn,) * 3)
            likely, least, most = (max(rows, each) for each in students[0].seconds)
            students[0] = dataclasses.replace(students[0], seconds=(likely, least, most))
        again = len(needs.students[-1].trainings) + needs.students[-1].done
        runs = len(self.config.teachers) + again * (2 if needs.command == "distill" and self.config.baseline else 1)
        first = next((self.paces[kind(s.trainings[0])] for s in (needs.teachers, *needs.students) if s.trainings), None)
        cold = first.cold if first else 0.0
        at_first = max(around.begin, cold) if self.local else around.begin + cold
        ends = started + at_first + around.end + around.run * max(0, runs - around.runs)
        lines = [teachers, fill, *students, Line("start and end", (ends, ends, ends))]
        kept = [t for s in (needs.teachers, *needs.students) for t in s.trainings if t.job.keep]
        models = sum(self.paces[kind(t)].model_bytes * t.job.method.generations for t in kept)
        return Estimate(lines, self.cut, models, self.device, time.monotonic() - began)

    def _stage(self, stage: Stage, role: str) -> Line:
        if not stage.trainings:  # teachers and ensemble are scored before the students in any case
            longer = 0.0 if role == "teacher" else self.around.stages.get(role, 0.0)
            return Line(stage.name, (longer,) * 3)
        search = self.config.search
        limit = 3600 * search.hours if role == "trial" and search.hours is not None else float("inf")
        each = [[self._seconds(t, role, pace) for t in stage.trainings] for pace in ("likely", "fast", "slow")]
        held = np.array([self._devices(t.resources) for t in stage.trainings]) * each[0]
        if role == "trial" and search.gpu_hours is not None and self.device == "GPU":
            within = int(np.searchsorted(np.cumsum(held), 3600 * search.gpu_hours)) + 1
            each = [seconds[:within] for seconds in each]
        walls, counts = zip(*(makespan(seconds, stage.at_once, limit) for seconds in each), strict=True)
        self.cut += len(stage.trainings) - counts[0]
        likely, least, most = (wall + self.around.stages.get(role, 0.0) for wall in walls)
        return Line(stage.name, (likely, least, most), float(held[: counts[0]].sum()))

    def _seconds(self, training: Training, role: str, how: str) -> float:
        pace, job, size = self.paces[kind(training)], training.job, training.resources
        factor = {"likely": 1.0, "fast": pace.fast, "slow": pace.slow}[how]
        pace = dataclasses.replace(pace, step=pace.step * factor, token=pace.token * factor)
        tokens = self._mean_tokens(job)
        found = pace.seconds(job, tokens)
        if self.live and job.method.distils:  # the teachers answer everyone who trains
            slowest = max(self._pass(fill) / fill.replicas for fill in self.needs.fills)
            asked = self.needs.students[0].at_once * job.training.batch_size * slowest
            found += job.steps * max(0.0, asked - pace.step - tokens * pace.token)
        if role == "trial":
            return found + self.around.between
        return found + (pace.cold if size.num_gpus and size.workers == 1 else 0.0)  # a process each

    def _mean_tokens(self, job: Job) -> float:
        seen = job.train, job.training.batch_size, job.training.group_by_length, min(job.steps, _LOOKED_AT)
        if seen not in self._tokens:
            self._tokens[seen] = float(step_tokens(job, seen[-1]).mean())
        return self._tokens[seen]

    def _fill(self) -> Line:
        seconds, held = 0.0, 0.0
        for turn in self.needs.turns:
            work = [(fill, fill.passes * self._pass(fill)) for fill in turn if fill.rows]
            if work:
                seconds += self.around.turn + max(each / fill.replicas for fill, each in work)
                held += sum(each * self._devices(fill.size) for fill, each in work)
        return Line("logits", (seconds, seconds, seconds), held)

    def _pass(self, fill: Fill) -> float:
        passes = self.around.passes
        return passes.get(fill.teacher, max(passes.values()))

    def _devices(self, size: Resources) -> float:
        return size.workers * (size.num_gpus if self.device == "GPU" else size.num_cpus)
