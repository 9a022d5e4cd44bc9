"""A dry run: the whole command on a subset of the data, to measure its overheads on the cluster.

Overheads are everything except the steps of trainings and the teachers' passes over rows: the start of processes and
actors, MLflow's runs, scoring, tables and the report.
"""

import heapq
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from raykd.checks.subset import subset
from raykd.checks.workload import Workload, room
from raykd.cluster.resources import Resources
from raykd.common.output_files import CONFIG, REPORT, RESULT
from raykd.common.progress import Bars
from raykd.config.load import build, override
from raykd.config.schema import Config
from raykd.experiment import command as experiment
from raykd.experiment.ending import finish
from raykd.experiment.precompute import precomputed_splits
from raykd.experiment.work import Work
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.search.jobs import TrialJobs
from raykd.search.journal import Journal
from raykd.search.space import Space
from raykd.teachers.replica import Progress
from raykd.tracking.event_log import EventLog
from raykd.tracking.experiment import Tracking
from raykd.tracking.mlflow_store import local_uri
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import Scored
from raykd.training.events import Done, Event


@dataclass(frozen=True)
class Overheads:
    """Times in seconds.

    begin: from the start of the command to its first training.
    stages: how much longer each stage takes than its trainings, by role.
    round_start: until the teachers of a round are ready, if it starts processes.
    between: from the end of one trial to the start of the next.
    end: from the last training to the end of the command.
    run: to write one training's run to MLflow.
    runs: number of such runs, besides those of trials, that `stages` and `end` already include.
    passes: of one of a teacher's models over one row, by the teacher's name.
    typical: whether they are those of a typical machine, and were not measured.
    """

    begin: float
    stages: dict[str, float]
    round_start: float
    between: float
    end: float
    run: float
    runs: int
    passes: dict[str, float]
    typical: bool = False


class _Clock(EventLog):
    """Records when trainings end and when teachers deliver logits (`time.monotonic`)."""

    def __init__(self, primary_metric: str) -> None:
        super().__init__(primary_metric)
        self.done: dict[str, list[tuple[float, Job]]] = {}  # by role
        self.answered: dict[str, float] = {}  # by teacher: when it last delivered logits

    def on_event(self, job: Job, event: Event, bars: Bars) -> None:
        if isinstance(event, Done):
            role = self.of(job)[0].role
            self.done.setdefault("teacher" if role == "baseline" else role, []).append((time.monotonic(), job))
        super().on_event(job, event, bars)

    def on_progress(self, progress: Progress) -> None:
        if progress.computed > (
            self.precomputed[progress.teacher].computed if progress.teacher in self.precomputed else 0
        ):
            self.answered[progress.teacher] = time.monotonic()
        super().on_progress(progress)


class _Recorder(Recorder):
    """Measures how long it takes to write runs to MLflow."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seconds, self.count = 0.0, 0  # to write runs, and their number
        self.event_log = self.clock = _Clock(self.event_log.primary_metric)

    def register(self, jobs: Sequence[Job], role: str, *given: Any, **named: Any) -> None:
        since = time.monotonic()
        super().register(jobs, role, *given, **named)
        if role != "trial":
            self.seconds, self.count = self.seconds + time.monotonic() - since, self.count + 1

    def trained(self, *given: Any, **named: Any) -> Scored:
        since = time.monotonic()
        scored = super().trained(*given, **named)
        self.seconds += time.monotonic() - since
        return scored


def measure_overheads(
    config: Config, prepared: Prepared, workload: Workload, rows: int, gpus: float, folder: Path
) -> Overheads:
    """Run the command on a subset of the data. Raises UserError.

    rows: number of rows of train; the other splits get a quarter of it.
    folder: an empty folder that all nodes share.
    """
    at_once = workload.students[0].at_once
    small_config = _config(config, workload.command, at_once, folder)
    small_data = subset(
        prepared, {n: rows if n == "train" else max(8, rows // 4) for n in prepared.splits}, small_config.store
    )
    small_config.folder.mkdir(parents=True)
    (small_config.folder / CONFIG).touch()
    began = time.monotonic()
    with _Recorder(
        Tracking(local_uri(folder), small_config.name), small_config, small_data, workload.command
    ) as recorder:
        opened = time.monotonic()
        _run_stages(Work(small_config, small_data, Console(file=io.StringIO()), recorder, gpus), workload.command)
    if workload.command == "sweep":
        from raykd.reports.command import report

        report(recorder.tracking.uri, [recorder.parent.id], small_config.folder / REPORT, Console(file=io.StringIO()))
    ended = time.monotonic()

    clock = recorder.clock
    trained = max((at for at, _ in clock.done.get("teacher", [])), default=opened)
    precomputed, round_start = _waits(clock, trained)
    trials = clock.done.get("trial", [])
    tried = max((at for at, _ in trials), default=precomputed)
    begins = {"teacher": opened, "trial": precomputed, "student": tried}
    return Overheads(
        begin=opened - began,
        stages={role: _longer(done, begins[role], small_config, gpus) for role, done in clock.done.items()},
        round_start=round_start,
        between=_between(trials, at_once),
        end=ended - max(at for at, _ in clock.done["student"]),
        run=recorder.seconds / recorder.count,
        runs=recorder.count,
        passes=_passes(clock, small_data, small_config),
    )


def makespan(seconds: Sequence[float], at_once: int, limit: float = float("inf")) -> tuple[float, int]:
    """Run trainings in order, up to `at_once` at a time.

    seconds: of each training.
    limit: no training starts after this many seconds.

    Returns the seconds until the last one ends, and how many were started.
    """
    free = [0.0] * max(1, at_once)
    for number, each in enumerate(seconds):
        if free[0] > limit:
            return max(free), number
        heapq.heapreplace(free, free[0] + each)
    return max(free), len(seconds)


def _config(config: Config, command: str, at_once: int, folder: Path) -> Config:
    """The same models, resources and concurrency, with one step per training."""
    step = {"steps": 1, "eval_every": 1, "select": None}
    values: dict[str, Any] = {
        "output": str(folder),
        "method": {"type": "kd"},
        "task.generate": None,  # see `short_job`
        "data.augment": config.data.augment if config.logits.mode == "live" else None,  # only where rows may change
        "student.seed": config.student.seeds[: 2 * at_once],
        "student.num_gpus": None if config.student.num_gpus == "auto" else config.student.num_gpus,
        "student.training": {k: v for k, v in config.student.training.items() if k != "epochs"} | step,
        "logits.storage": None,
        "logits.cache": None,
    }
    for i, teacher in enumerate(config.teachers):
        if teacher.recipe:
            own = {k: v for k, v in teacher.recipe.training.items() if k != "epochs"} | step
            values |= {f"teachers.{i}.recipe.training": own, f"teachers.{i}.recipe.seed": 1000 + i}
    if command == "sweep":
        space = {"method.alpha": {"uniform": [0.25, 0.75]}}
        values["search"] = {"trials": 2 * at_once, "seeds": 1, "space": space}
    return build(override(config.model_dump(exclude={"search"}), values))


def _run_stages(work: Work, command: str) -> None:
    if command == "sweep":
        from raykd.search import sweep  # imports Ray Tune

        space = Space(work.config)
        space.arms = [arm for arm in space.arms if arm.name == "kd"]
        scored, failed = sweep.run_stages(work, TrialJobs(space, work.prepared), Journal(work.config.folder, {}, False))
    else:
        scored, failed = experiment.run_stages(work, command)
    for error in failed.values():
        raise error
    finish(work, scored, work.recorder.tracking.uri, None)


def _seconds(job: Job) -> float:
    return json.loads((job.folder / RESULT).read_text())["seconds"]


def _longer(done: Sequence[tuple[float, Job]], begin: float, config: Config, gpus: float) -> float:
    """How much longer a stage takes than its trainings, in seconds; at least 0.

    done: when each training ended, and its job. begin: when the stage began.
    """
    sizes = {t.name: Resources.of(t, gpus) for t in config.teachers}
    of_student = Resources.of(config.student, gpus)
    held = [sizes.get(job.name.partition(" fold ")[0], of_student) for _, job in done]
    took, _ = makespan([_seconds(job) for _, job in done], room(held, len(held)))
    return max(0.0, max(at for at, _ in done) - begin - took)


def _waits(clock: _Clock, since: float) -> tuple[float, float]:
    """When the last logits were delivered, and the longest time until the first teacher of a round was ready.

    In the other rounds, teachers can have taken over processes.

    since: when the teachers' trainings ended.
    """
    longest = 0.0
    for ready, end in sorted((at - clock.precomputed[name].took, at) for name, at in clock.answered.items()):
        longest = max(longest, ready - since)
        since = max(since, end)
    return since, longest


def _between(trials: Sequence[tuple[float, Job]], at_once: int) -> float:
    """Mean seconds from a trial's end to the start of the next one in the same process."""
    ends = np.array([at for at, _ in trials])
    took = np.array([_seconds(job) for _, job in trials])
    gaps = ends[at_once:] - ends[:-at_once] - took[at_once:]
    return max(0.0, float(gaps.mean())) if len(gaps) else 0.0


def _passes(clock: _Clock, prepared: Prepared, config: Config) -> dict[str, float]:
    """Seconds that one of a teacher's models takes for a row, by teacher."""
    seconds = {}
    for teacher in config.teachers:
        if (progress := clock.precomputed.get(teacher.name)) is None or not progress.computed:
            continue  # it is the same model as another teacher, whose actors compute for both
        models = max(1, teacher.folds)
        rows = {n: len(e.open()) for n, e in prepared.teachers[teacher.name].splits.items()}
        names = precomputed_splits(prepared, config.logits.mode == "live")
        passes = sum(rows[n] * (1 if n == "train" else models) for n in names)
        share = progress.computed / sum(rows[n] for n in names)
        seconds[teacher.name] = progress.seconds / (passes * share)
    return seconds
