"""Passes the events of trainings on to MLflow and the screen."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raykd.common.progress import Bars
from raykd.plan.job import Job, best_scores
from raykd.teachers.replica import Progress
from raykd.tracking.linked import AnyRun
from raykd.training.events import (
    AlreadyTrained,
    Done,
    EndedEarly,
    Evaluated,
    Event,
    Failed,
    GenerationEnded,
    Locked,
    LogitsMissing,
    Progressed,
    Restarted,
    Resumed,
    Started,
    Stopped,
    WaitingForResources,
    Warned,
    WorkersLost,
    stored_events,
)

log = logging.getLogger(__name__)
# Warn of a student that waits for logits for more than this share of its time, and for more than so many seconds.
MAX_WAIT_SHARE, MIN_WAIT_SECONDS = 0.05, 30.0


@dataclass
class LoggedRun:
    """An MLflow run that gets the events of a job. The folds of a teacher share one run, each with its own prefix."""

    run: AnyRun
    role: str
    prefix: str
    group: str


class EventLog:
    """Which MLflow runs get the events of which job. primary_metric: the task's."""

    def __init__(self, primary_metric: str) -> None:
        self.primary_metric = primary_metric
        self.runs: dict[str, list[LoggedRun]] = {}  # by the job's fingerprint
        self.precomputed: dict[str, Progress] = {}  # by teacher; written by the pool's thread
        self.reported_slow: dict[str, str] = {}  # by job: the teacher last reported as too slow for it

    def add(self, job: Job, logged: LoggedRun) -> None:
        self.runs.setdefault(job.fingerprint, []).append(logged)

    def of(self, job: Job) -> list[LoggedRun]:
        """The runs of a job. Several, if a student with method finetune equals the baseline."""
        return self.runs[job.fingerprint]

    def drop(self, job: Job, run: AnyRun | None) -> AnyRun:
        """Stop passing events of the job to this run (None: its first run). Other runs keep getting them."""
        runs = self.runs.pop(job.fingerprint, [])
        run = run or runs[0].run
        if others := [one for one in runs if one.run is not run]:
            self.runs[job.fingerprint] = others
        return run

    def on_progress(self, progress: Progress) -> None:
        """Keep one teacher's latest progress. Called by the pool's thread."""
        self.precomputed[progress.teacher] = progress

    def on_event(self, job: Job, event: Event, bars: Bars) -> None:
        generations = job.method.generations
        match event:
            case Started():
                bars.update(job.name, 0, event.steps * generations)
            case Progressed():
                bars.update(job.name, event.total_step, event.steps * generations)
            case Evaluated():
                note = f"validation {self.primary_metric} {event.metrics[self.primary_metric]:.4g}"
                bars.update(job.name, event.total_step, event.steps * generations, note)
            case EndedEarly():
                done, total = event.previous_steps + event.steps, event.steps * generations
                bars.update(
                    job.name, done, total, f"ended at step {event.step} of {event.steps}, as no score was better"
                )
            case Resumed():
                bars.say(f"{job.name}: resuming at step {event.step} of {event.steps} from its checkpoint")
            case Locked():
                bars.say(f"{job.name}: waits for {event.holder}, which trains the same model (it holds {event.file})")
            case WaitingForResources():
                bars.say(event.text)
            case AlreadyTrained():
                bars.say(f"{job.name}: another command has trained it in the meantime")
            case Warned():
                bars.say(f"{job.name}: {event.text}")
            case WorkersLost():
                bars.say(f"{job.name}: {event.reason}; resuming from its last checkpoint once there is room")
            case Restarted():
                bars.say(f"{job.name}: {event.reason}; resuming from its last checkpoint")
            case LogitsMissing():
                bars.say(
                    f"{job.name}: logits are missing at step {event.step}; paused until a teacher has computed them"
                )
            case Failed():
                bars.ended(job.name, "failed")
            case Stopped():
                bars.say(f"{job.name}: stopped at step {event.step} of {event.steps} with a checkpoint")
        if isinstance(event, Done | AlreadyTrained):
            result = job.result()
            kept = best_scores(result)["validation"][self.primary_metric]
            bars.ended(job.name, f"validation {self.primary_metric} {kept:.4g}")
        if isinstance(event, Progressed | Evaluated) and (waits := event.waits):
            self._warn_of_waits(job, waits, bars, again=isinstance(event, Evaluated))
        if isinstance(event, Resumed | AlreadyTrained):
            self.replay(job)  # the history up to here; the runs drop what this command has logged already
        for logged in self.runs[job.fingerprint]:
            self._log(logged, event, job)

    def _warn_of_waits(self, job: Job, waits: Mapping[str, Any], bars: Bars, again: bool) -> None:
        """Warn if the student waits too long for one teacher. again: also if it was warned of this teacher before."""
        if waits["seconds"] > MIN_WAIT_SECONDS and waits["share"] > MAX_WAIT_SHARE:
            if again or self.reported_slow.get(job.fingerprint) != waits["teacher"]:
                bars.say(self._bottleneck(job, waits))
            self.reported_slow[job.fingerprint] = waits["teacher"]

    def _bottleneck(self, job: Job, waits: Mapping[str, Any]) -> str:
        """The teacher that a student waits for, and how many replicas would keep up with the student."""
        name, progress = waits["teacher"], self.precomputed.get(waits["teacher"])
        rate = waits.get("per_replica") or (progress.per_replica if progress else 0.0)
        now = waits.get("replicas") or (progress.replicas if progress else 1)
        text = f"{job.name}: waited {waits['share']:.0%} of its time for the logits of {name}"
        if not rate:
            return text
        needed = max(now + 1, math.ceil(waits["rows_per_s"] / rate))
        return (
            f"{text} ({rate:.0f} rows/s per replica, with {now}; the student could use {waits['rows_per_s']:.0f}): "
            f"teachers.{name}.replicas={needed} would be enough"
        )

    def _log(self, logged: LoggedRun, event: Event, job: Job) -> None:
        run, prefix = logged.run, logged.prefix
        match event:
            case Evaluated() | Stopped() | LogitsMissing():  # steps are numbered consecutively over generations
                # The first metric of a run is the one that MLflow's comparison of runs opens with.
                validation = event.metrics if isinstance(event, Evaluated) else {}
                run.log({f"{prefix}validation/{k}": v for k, v in validation.items()}, event.total_step)
                rates = event.throughput if isinstance(event, Evaluated) else {}
                run.log({f"{prefix}throughput/{k}": v for k, v in rates.items()}, event.total_step)
                for step, values in event.history:
                    run.log({f"{prefix}train/{k}": v for k, v in values.items()}, event.previous_steps + step)
            case GenerationEnded() if job.method.generations > 1:
                scores = {k: v for k, v in event.metrics.items() if logged.role != "trial" or k[:5] != "test/"}
                run.log({f"generations/{k.replace('/', '_')}": v for k, v in scores.items()}, event.generation)
            case Restarted():
                run.log({f"{prefix}restarts": event.tries}, event.tries)
            case Failed():
                run.finish("FAILED", event.reason)

    def replay(self, job: Job, whole: bool = True) -> None:
        """Log the job's events in `events.jsonl` again.

        whole: with every point of the training's curves; otherwise only those at evaluations, about one in a hundred.
        """
        for event in stored_events(job.folder):
            if not whole and not isinstance(event, GenerationEnded):
                event = replace(event, history=event.history[-1:])
            for logged in self.runs[job.fingerprint]:
                self._log(logged, event, job)
