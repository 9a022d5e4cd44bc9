"""Which trials are stopped early: those that fall behind the others of their method."""

from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raykd.config.search import SearchConfig
from raykd.search.journal import Trial
from raykd.training.processes import Training

_REDUCTION = 3  # ASHA keeps a third of the trials at each rung (Li et al. 2020 use 3 or 4)
_MEDIAN_OF = 3  # trials at least, before one is stopped for being below their median
_NEVER = float("inf")


@dataclass(frozen=True)
class TrialSpec:
    """What a trial's process gets.

    metric: the validation metric that is its score.
    never_prune: whether no scheduler may stop it.
    """

    trial: Trial
    training: Training
    metric: str
    never_prune: bool

    def __repr__(self) -> str:
        return self.trial.name  # Tune puts it into names


class PerArm(FIFOScheduler):
    """A scheduler for each arm: its trials are compared with one another, never with another method's."""

    def __init__(self, settings: SearchConfig) -> None:
        super().__init__()
        self.settings = settings
        self._of: dict[str, TrialScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if scheduler := self._scheduler(trial):
            scheduler.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        scheduler = self._scheduler(trial)
        if (
            scheduler is None or result["done"] or result.get("waiting") or result["progress"] >= 100
        ):  # what is paid for is kept
            return TrialScheduler.CONTINUE
        decision = str(scheduler.on_trial_result(tune_controller, trial, _compared(result)))
        # Median stopping pauses a trial until others have come as far; here each runs to its end or is stopped.
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if (scheduler := self._scheduler(trial)) and result.get("state") in ("running", "finished"):
            scheduler.on_trial_complete(tune_controller, trial, _compared(result))

    def _scheduler(self, trial: Any) -> TrialScheduler | None:
        handed: TrialSpec = trial.config["handed"]
        if handed.never_prune or self.settings.scheduler == "none":
            return None
        if handed.trial.arm not in self._of:
            grace = max(1.0, 100.0 * self.settings.grace)
            about: dict[str, Any] = {"time_attr": "progress", "metric": "score", "mode": "max", "grace_period": grace}
            if self.settings.scheduler == "asha":
                made: TrialScheduler = AsyncHyperBandScheduler(
                    max_t=100, reduction_factor=_REDUCTION, stop_last_trials=False, **about
                )
            else:
                made = MedianStoppingRule(min_samples_required=_MEDIAN_OF, min_time_slice=_NEVER, **about)
            self._of[handed.trial.arm] = made
        return self._of[handed.trial.arm]


def _compared(result: dict[str, Any]) -> dict[str, Any]:
    """What a scheduler keeps of a result: MedianStoppingRule keeps them all."""
    return {"progress": result["progress"], "score": result["score"]}
