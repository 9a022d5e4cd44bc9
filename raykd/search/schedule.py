"""Pruning: trials that fall behind the others of their method are stopped early."""

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raykd.config.search import SearchConfig
from raykd.search.trial_spec import Outcome, TrialSpec

_REDUCTION = 3  # ASHA keeps a third of the trials at each rung (Li et al. 2020 use 3 or 4)
_MEDIAN_OF = 3  # at least this many trials are needed before one below their median is stopped
_NEVER = float("inf")


class PerArm(FIFOScheduler):
    """One scheduler per arm, so that trials are compared only with others of their method."""

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
        ):  # a trial that has done all its work is not pruned
            return TrialScheduler.CONTINUE
        decision = str(scheduler.on_trial_result(tune_controller, trial, _compared(result)))
        # Median stopping pauses a trial until others are as far; here each runs to its end or is pruned.
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if (scheduler := self._scheduler(trial)) and result.get("outcome", Outcome.STOPPED) in (None, Outcome.FINISHED):
            scheduler.on_trial_complete(tune_controller, trial, _compared(result))

    def _scheduler(self, trial: Any) -> TrialScheduler | None:
        spec: TrialSpec = trial.config["spec"]
        if spec.never_prune or self.settings.scheduler == "none":
            return None
        if spec.trial.arm not in self._of:
            grace = max(1.0, 100.0 * self.settings.grace)
            options: dict[str, Any] = {"time_attr": "progress", "metric": "score", "mode": "max", "grace_period": grace}
            if self.settings.scheduler == "asha":
                scheduler: TrialScheduler = AsyncHyperBandScheduler(
                    max_t=100, reduction_factor=_REDUCTION, stop_last_trials=False, **options
                )
            else:
                scheduler = MedianStoppingRule(min_samples_required=_MEDIAN_OF, min_time_slice=_NEVER, **options)
            self._of[spec.trial.arm] = scheduler
        return self._of[spec.trial.arm]


def _compared(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that schedulers need. MedianStoppingRule keeps every result that it gets."""
    return {"progress": result["progress"], "score": result["score"]}
