"""What trainings tell, on its way to MLflow and to the screen."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raykd.common.progress import Bars
from raykd.plan.job import Job
from raykd.teachers.replica import Progress
from raykd.tracking.experiment import Run
from raykd.training.events import (
    AlreadyTrained,
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
    from_json,
)

log = logging.getLogger(__name__)
WAITED_TOO_LONG, TELL_AFTER_SECONDS = 0.05, 30.0  # share of a student's time, and how much of it must have been seen


@dataclass
class Listener:
    """An MLflow run that hears of a job. A teacher's folds share one, each under its own prefix."""

    run: Run
    role: str
    prefix: str
    group: str


class EventLog:
    """Who hears of which job. headline: the task's first metric."""

    def __init__(self, headline: str) -> None:
        self.primary_metric = headline
        self.listeners: dict[str, list[Listener]] = {}  # by the job's fingerprint
        self.fills: dict[str, Progress] = {}  # by teacher; written by the pool's thread
        self.told_of: dict[str, str] = {}  # by job: the teacher that the user knows to be too slow for it

    def add(self, job: Job, listener: Listener) -> None:
        self.listeners.setdefault(job.fingerprint, []).append(listener)

    def of(self, job: Job) -> list[Listener]:
        """A job may have several: the student under `finetune` is the baseline's own training."""
        return self.listeners[job.fingerprint]

    def drop(self, job: Job, run: Run | None) -> Run:
        """This run (None: the first) hears no more of the job; an equal training's of another arm may."""
        heard = self.listeners.pop(job.fingerprint, [])
        run = run or heard[0].run
        if others := [one for one in heard if one.run is not run]:
            self.listeners[job.fingerprint] = others
        return run

    def filled(self, progress: Progress) -> None:
        """What the pool tells of one teacher's fill."""
        self.fills[progress.teacher] = progress

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
            case Resumed():
                bars.say(f"{job.name}: goes on at step {event.step} of {event.steps}, from its checkpoint")
            case Locked():
                bars.say(f"{job.name}: waits for {event.holder}, which trains the same model (it holds {event.file})")
            case WaitingForResources():
                bars.say(event.text)
            case AlreadyTrained():
                bars.say(f"{job.name}: another command has trained it meanwhile")
            case Warned():
                bars.say(f"{job.name}: {event.text}")
            case Restarted():
                bars.say(f"{job.name}: its process died; it goes on from its last checkpoint")
            case LogitsMissing():
                bars.say(
                    f"{job.name}: logits are missing at step {event.step}: it makes way for a teacher to compute them"
                )
            case Stopped():
                bars.say(f"{job.name}: stopped at step {event.step} of {event.steps}, its checkpoint is written")
        if isinstance(event, Progressed | Evaluated) and (waits := event.waits):
            self._warn_of_waits(job, waits, bars, again=isinstance(event, Evaluated))
        if isinstance(event, Resumed | AlreadyTrained):
            self.replay(job)  # the history up to here; the runs drop what this command has logged already
        for listener in self.listeners[job.fingerprint]:
            self._log(listener, event, job)

    def _warn_of_waits(self, job: Job, waits: Mapping[str, Any], bars: Bars, again: bool) -> None:
        """If it waits too long for one teacher. again: also if that was said before."""
        if waits["seconds"] > TELL_AFTER_SECONDS and waits["share"] > WAITED_TOO_LONG:
            if again or self.told_of.get(job.fingerprint) != waits["teacher"]:
                bars.say(self._bottleneck(job, waits))
            self.told_of[job.fingerprint] = waits["teacher"]

    def _bottleneck(self, job: Job, waits: Mapping[str, Any]) -> str:
        """Which teacher a student waits for, and how many replicas would keep up with it."""
        name, pace = waits["teacher"], self.fills.get(waits["teacher"])
        rate = waits.get("per_replica") or (pace.per_replica if pace else 0.0)
        now = waits.get("replicas") or (pace.replicas if pace else 1)
        text = f"{job.name}: waited {waits['share']:.0%} of its time for the logits of {name}"
        if not rate:
            return text
        needed = max(now + 1, math.ceil(waits["rows_per_s"] / rate))
        return (
            f"{text} ({rate:.0f} rows/s a replica, {now} of them; the student could take {waits['rows_per_s']:.0f}): "
            f"teachers.{name}.replicas={needed} would cure it"
        )

    def _log(self, listener: Listener, event: Event, job: Job) -> None:
        run, prefix = listener.run, listener.prefix
        match event:
            case Evaluated() | Stopped() | LogitsMissing():  # generations follow one another on one axis
                # The first metric that a run has is the one that MLflow's comparison of runs opens with.
                validation = event.metrics if isinstance(event, Evaluated) else {}
                run.log({f"{prefix}validation/{k}": v for k, v in validation.items()}, event.total_step)
                rates = event.throughput if isinstance(event, Evaluated) else {}
                run.log({f"{prefix}throughput/{k}": v for k, v in rates.items()}, event.total_step)
                for step, values in event.history:
                    run.log({f"{prefix}train/{k}": v for k, v in values.items()}, event.previous_steps + step)
            case GenerationEnded() if job.method.generations > 1:
                scores = {k: v for k, v in event.metrics.items() if listener.role != "trial" or k[:5] != "test/"}
                run.log({f"generations/{k.replace('/', '_')}": v for k, v in scores.items()}, event.generation)
            case Restarted():
                run.log({"restarts": event.tries}, event.tries)
            case Failed():
                run.finish("FAILED", event.reason)

    def replay(self, job: Job, whole: bool = True) -> None:
        """Log what `events.jsonl` keeps of the job. A line that a killed process left unfinished is passed over.

        whole: with every point of the training's curves; else those at its evaluations alone, a hundredth of them.
        """
        path = job.folder / "events.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        for line in filter(None, lines):
            try:
                event = from_json(line)
            except ValueError:
                log.warning("%s: an unfinished line in %s is passed over", job.name, path)
                continue
            if not whole and not isinstance(event, GenerationEnded):
                event = replace(event, history=event.history[-1:])
            for listener in self.listeners[job.fingerprint]:
                self._log(listener, event, job)
