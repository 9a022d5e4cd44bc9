"""The whole command in miniature, on the cluster: what it takes beside its trainings' steps and its rows.

So the start of processes and actors, MLflow's runs, scoring, tables and the report are measured as they are.
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

from raykd.check.subset import miniature
from raykd.check.workload import Needs, room
from raykd.cluster.resources import Resources
from raykd.common.progress import Bars
from raykd.config.load import build, override
from raykd.config.schema import Config
from raykd.experiment import command as experiment
from raykd.experiment.stages import Work, finish, precomputed_splits
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.search.jobs import TrialJobs
from raykd.search.journal import Journal
from raykd.search.space import Space
from raykd.teachers.replica import Progress
from raykd.tracking.event_log import EventLog
from raykd.tracking.experiment import Tracking
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import Scored
from raykd.tracking.store import local_uri
from raykd.training.events import Done, Event


@dataclass(frozen=True)
class Overheads:
    """Seconds. begin, end: of the command. stages: how much longer each takes than its trainings, by role.

    turn: until the teachers of a turn are ready. between: from one trial to the next. run: to keep one training's run
    in MLflow; the stages above hold `runs` of them beside trials. passes: of a teacher over a row, by its name.
    """

    begin: float
    stages: dict[str, float]
    turn: float
    between: float
    end: float
    run: float
    runs: int
    passes: dict[str, float]


class _Clock(EventLog):
    """Notes when it hears of what."""

    def __init__(self, headline: str) -> None:
        super().__init__(headline)
        self.done: dict[str, list[tuple[float, Job]]] = {}  # by role
        self.answered: dict[str, float] = {}  # by teacher: when it has answered last

    def on_event(self, job: Job, event: Event, bars: Bars) -> None:
        if isinstance(event, Done):
            role = self.of(job)[0].role
            self.done.setdefault("teacher" if role == "baseline" else role, []).append((time.monotonic(), job))
        super().on_event(job, event, bars)

    def filled(self, progress: Progress) -> None:
        if progress.computed > (self.fills[progress.teacher].computed if progress.teacher in self.fills else 0):
            self.answered[progress.teacher] = time.monotonic()
        super().filled(progress)


class _Recorder(Recorder):
    """Notes how long it takes to keep runs."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.keeping, self.kept = 0.0, 0
        self.event_log = self.clock = _Clock(self.event_log.primary_metric)

    def register(self, jobs: Sequence[Job], role: str, *given: Any, **named: Any) -> None:
        since = time.monotonic()
        super().register(jobs, role, *given, **named)
        if role != "trial":
            self.keeping, self.kept = self.keeping + time.monotonic() - since, self.kept + 1

    def trained(self, *given: Any, **named: Any) -> Scored:
        since = time.monotonic()
        found = super().trained(*given, **named)
        self.keeping += time.monotonic() - since
        return found


def around(config: Config, prepared: Prepared, needs: Needs, rows: int, gpus: float, folder: Path) -> Overheads:
    """rows: of train; a quarter of the other splits. folder: an empty one that all nodes see. Raises UserError."""
    at_once = needs.students[0].at_once
    small = _config(config, needs.command, at_once, folder)
    mini = miniature(prepared, {n: rows if n == "train" else max(8, rows // 4) for n in prepared.splits}, small.store)
    small.folder.mkdir(parents=True)
    (small.folder / "config.yaml").touch()
    began = time.monotonic()
    with _Recorder(Tracking(local_uri(folder), small.name), small, mini, needs.command) as recorder:
        opened = time.monotonic()
        _run_stages(Work(small, mini, Console(file=io.StringIO()), recorder, gpus), needs.command)
    if needs.command == "sweep":
        from raykd.report.command import report

        report(recorder.tracking.uri, [recorder.parent.id], small.folder / "report", Console(file=io.StringIO()))
    ended = time.monotonic()

    clock = recorder.clock
    trained = max((at for at, _ in clock.done.get("teacher", [])), default=opened)
    filled, turn = _waits(clock, trained)
    trials = clock.done.get("trial", [])
    tried = max((at for at, _ in trials), default=filled)
    begins = {"teacher": opened, "trial": filled, "student": tried}
    return Overheads(
        begin=opened - began,
        stages={role: _longer(done, begins[role], small, gpus) for role, done in clock.done.items()},
        turn=turn,
        between=_between(trials, at_once),
        end=ended - max(at for at, _ in clock.done["student"]),
        run=recorder.keeping / recorder.kept,
        runs=recorder.kept,
        passes=_passes(clock, mini, small),
    )


def makespan(seconds: Sequence[float], at_once: int, limit: float = float("inf")) -> tuple[float, int]:
    """How long trainings take that start in their order where there is room, and how many start within the limit."""
    free = [0.0] * max(1, at_once)
    for number, each in enumerate(seconds):
        if free[0] > limit:
            return max(free), number
        heapq.heapreplace(free, free[0] + each)
    return max(free), len(seconds)


def _config(config: Config, command: str, at_once: int, folder: Path) -> Config:
    """One step a training, of the same models with the same resources; as many at once as there will be."""
    step = {"steps": 1, "eval_every": 1, "select": None}
    values: dict[str, Any] = {
        "output": str(folder),
        "method": {"type": "kd"},
        "student.seed": config.student.seeds[: 2 * at_once],
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
    finish(work, scored, work.recorder.tracking.uri, "")


def _seconds(job: Job) -> float:
    return json.loads((job.folder / "result.json").read_text())["seconds"]


def _longer(done: Sequence[tuple[float, Job]], begin: float, config: Config, gpus: float) -> float:
    """Than its trainings. Beside a fill they may end sooner than they would alone: then by nothing."""
    sizes = {t.name: Resources.of(t, gpus) for t in config.teachers}
    of_student = Resources.of(config.student, gpus)
    held = [sizes.get(job.name.partition(" fold ")[0], of_student) for _, job in done]
    took, _ = makespan([_seconds(job) for _, job in done], room(held, len(held)))
    return max(0.0, max(at for at, _ in done) - begin - took)


def _waits(clock: _Clock, since: float) -> tuple[float, float]:
    """When the fill has ended, and how long none of a turn's teachers was at work before it, in the mean."""
    waits = []
    for ready, end in sorted((at - clock.fills[name].took, at) for name, at in clock.answered.items()):
        if ready > since:
            waits.append(ready - since)
        since = max(since, end)
    return since, sum(waits) / max(1, len(waits))


def _between(trials: Sequence[tuple[float, Job]], at_once: int) -> float:
    """From a trial's end to the next one's begin, in the same process."""
    ends = np.array([at for at, _ in trials])
    took = np.array([_seconds(job) for _, job in trials])
    apart = ends[at_once:] - ends[:-at_once] - took[at_once:]
    return max(0.0, float(apart.mean())) if len(apart) else 0.0


def _passes(clock: _Clock, prepared: Prepared, config: Config) -> dict[str, float]:
    found = {}
    for teacher in config.teachers:
        if (progress := clock.fills.get(teacher.name)) is None or not progress.computed:
            continue  # the same model as another, which speaks for both
        models = max(1, teacher.folds)
        rows = {n: len(e.open()) for n, e in prepared.teachers[teacher.name].splits.items()}
        names = precomputed_splits(prepared, config.logits.mode == "live")
        passes = sum(rows[n] * (1 if n == "train" else models) for n in names)
        share = progress.computed / sum(rows[n] for n in names)
        found[teacher.name] = progress.seconds / (passes * share)
    return found
