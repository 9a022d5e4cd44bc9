"""What the process of a trial receives, how the trial ends, and how its score is read. Needs no Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from raykd.common.metrics import higher_is_better
from raykd.search.journal import Trial
from raykd.training.access import Training
from raykd.training.events import Event


@dataclass(frozen=True)
class TrialSpec:
    """What the process of a trial receives.

    metric: the validation metric that is its score.
    never_prune: whether the scheduler must not stop it.
    """

    trial: Trial
    training: Training
    metric: str
    never_prune: bool

    def __repr__(self) -> str:
        return self.trial.name  # Tune uses it in names


class Outcome(StrEnum):
    """How a run of a trial in Ray Tune has ended. After some outcomes the trial waits, and is run again."""

    FINISHED = "finished"
    PRUNED = "pruned"  # by the scheduler
    FAILED = "failed"
    STOPPED = "stopped"  # the sweep was asked to stop
    LOGITS_MISSING = "logits missing"
    GPU_FULL = "GPU full"  # the memory of the GPU that it shares has ended
    NO_ROOM = "no room"  # it has waited in vain for resources that other trials hold
    DIED = "died"  # with its process, although Tune has retries left


class Trials(Protocol):
    """The trials that a search runs. An exception in any method stops the search and is raised by it."""

    def next_trial(self) -> TrialSpec | None:
        """The next one; None if there is none, which ends the search once all have ended."""

    def on_result(self, spec: TrialSpec, events: Sequence[Event], result: dict[str, Any]) -> None:
        """A step of a trial has ended. result: as `TrialProcess.step` returns it, without the events."""

    def on_end(self, spec: TrialSpec, outcome: Outcome, reason: str, permanent: bool) -> None:
        """A trial has ended.

        reason: why it failed.
        permanent: whether a failed trial would fail in the same way again.
        """

    def teachers_work(self) -> bool:
        """Whether this command's teachers hold resources, for which trials may be waiting."""


def signed(metrics: dict[str, float], metric: str) -> float:
    """The metric's value, negated if lower is better."""
    return higher_is_better(metric, metrics[metric])
