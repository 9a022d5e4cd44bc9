"""What the process of a trial receives, and how its score is read. Needs no Ray, as little as a reused trial does."""

from dataclasses import dataclass

from raykd.common.metrics import higher_is_better
from raykd.search.journal import Trial
from raykd.training.access import Training


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


def signed(metrics: dict[str, float], metric: str) -> float:
    """The metric's value, negated if lower is better."""
    return higher_is_better(metric, metrics[metric])
