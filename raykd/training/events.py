"""What happens to a training, as types: its process yields them, and the driver logs, shows and stores them.

`events.jsonl` in a job's folder keeps the ones that MLflow's history is made of, one JSON object a line, for a later
command that reuses or resumes the training. Imports no torch: every process that events pass through imports this.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from raykd.common.output_files import EVENTS

log = logging.getLogger(__name__)
History = list[tuple[int, dict[str, float]]]  # (steps done, values), of each logged step


# Before the first step ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A process has taken the job. With several workers, these have no resources yet."""

    steps: int  # of a generation
    pid: int


@dataclass(frozen=True)
class Locked:
    """Another command trains the same job; this one waits for it.

    holder: the process, in words.
    file: the lock.
    """

    holder: str
    file: str


@dataclass(frozen=True)
class AlreadyTrained:
    """The job has a result by now, so nothing is trained."""


@dataclass(frozen=True)
class WaitingForResources:
    """Several workers of one training have no resources yet. text: what they ask for, and what the cluster has."""

    text: str


@dataclass(frozen=True)
class Placed:
    """Several workers of one training have their resources."""


@dataclass(frozen=True)
class WorkersLost:
    """Several workers of one training have been given up; others resume from its checkpoint once they have resources.

    reason: why, as the user reads it.
    """

    reason: str


# While it trains ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AtStep:
    generation: int  # from 1
    step: int  # steps done in this generation
    steps: int  # planned, of each generation

    @property
    def previous_steps(self) -> int:
        """The steps of all generations before this one."""
        return (self.generation - 1) * self.steps

    @property
    def total_step(self) -> int:
        """Steps done over all generations."""
        return self.previous_steps + self.step


@dataclass(frozen=True)
class Resumed(_AtStep):
    """It continues from a checkpoint."""


@dataclass(frozen=True)
class Progressed(_AtStep):
    """About once a second.

    waits: the teacher that it waited for most, or {}; see `WaitMeter.summary`.
    """

    loss: float
    waits: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated(_AtStep):
    """It was scored on the validation split, at the same steps on every worker, and has written a checkpoint.

    waits: as in `Progressed`.
    seconds: spent on this training so far, also before a resume.
    throughput: rows_per_s and tokens_per_s since the last evaluation.
    """

    metrics: dict[str, float]
    history: History
    waits: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    throughput: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EndedEarly(_AtStep):
    """Its validation score has not improved for `training.patience` evaluations, so this generation ends here."""


@dataclass(frozen=True)
class GenerationEnded:
    """metrics: of the generation's best weights, as "validation/NAME" and "test/NAME"."""

    generation: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Warned:
    """raykd has logged a warning in the training's process, whose own log nobody reads."""

    text: str


# Its end, or that of a try ------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped(_AtStep):
    """It was asked to stop, and has written a checkpoint of this step."""

    history: History


@dataclass(frozen=True)
class LogitsMissing(_AtStep):
    """It needs logits that nobody is computing, and has written a checkpoint of this step."""

    history: History


@dataclass(frozen=True)
class Done:
    """Its result is saved."""


@dataclass(frozen=True)
class Restarted:
    """Another process resumes from its checkpoint.

    tries: so far, without the first.
    reason: why the process before it has ended.
    """

    tries: int
    reason: str = "its process died"


@dataclass(frozen=True)
class Failed:
    """It has failed for good. reason: the error, as the user reads it."""

    reason: str


@dataclass(frozen=True)
class Stopping:
    """The command ends, and has asked the training for a checkpoint."""


Event = (
    Started
    | Locked
    | AlreadyTrained
    | WaitingForResources
    | Placed
    | WorkersLost
    | Resumed
    | Progressed
    | Evaluated
    | EndedEarly
    | GenerationEnded
    | Warned
    | Stopped
    | LogitsMissing
    | Done
    | Restarted
    | Failed
    | Stopping
)


# Inside a Ray Train run, sent by its processes to the one that drives it -------------------------


@dataclass(frozen=True)
class ControllerStarted:
    """actor: Ray Train's controller, by which the run is ended at once."""

    actor: Any


@dataclass(frozen=True)
class GroupLost:
    """Ray Train has given up the workers, also while they were starting, and starts others. reason: in one line."""

    reason: str


@dataclass(frozen=True)
class WorkerFailed:
    """A worker has failed with an error that another try would meet again."""

    error: Exception


# On disk ------------------------------------------------------------------------------------------

Stored = Evaluated | GenerationEnded | Stopped | LogitsMissing  # what `events.jsonl` keeps
_NAMES: dict[type[Stored], str] = {
    Evaluated: "evaluation",
    GenerationEnded: "generation",
    Stopped: "stopped",
    LogitsMissing: "missing",
}
_TYPES = {name: event for event, name in _NAMES.items()}


def stored_events(folder: Path) -> Iterator[Stored]:
    """What a job's folder keeps of its events, in order. A line that a killed process left unfinished is skipped."""
    path = folder / EVENTS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for line in filter(None, lines):
        try:
            yield from_json(line)
        except ValueError:
            log.warning("skipped an unfinished line in %s", path)


def to_json(event: Stored) -> str:
    """One line: {"event": "evaluation", "generation": 1, ...}."""
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    return json.dumps({"event": _NAMES[type(event)]} | values)


def from_json(line: str) -> Stored:
    """Raises ValueError for a line that a killed process left unfinished, and for any other event."""
    values = json.loads(line)
    event = _TYPES.get(values.pop("event", "")) if isinstance(values, dict) else None
    if event is None:
        raise ValueError(f"not a stored event: {line}")
    if "history" in values:
        values["history"] = [(step, logged) for step, logged in values["history"]]
    known = {f.name for f in fields(event)}
    return event(**{name: value for name, value in values.items() if name in known})
