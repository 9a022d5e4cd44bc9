"""Runs trials in Ray Tune, in processes that are reused from trial to trial.

Tune places, watches and restarts the trials and calls the scheduler. `SweepState` decides which trial is next and keeps
the results, and each trial's checkpoint is in its job's folder, so none of Tune's own state needs to survive.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import Searcher

from raykd.cluster.causes import cause_of
from raykd.cluster.flags import Flag
from raykd.cluster.resources import TRAIN_CONTROLLER_CPUS
from raykd.cluster.room import NoRoom, RoomWait
from raykd.config.schema import RayConfig
from raykd.config.search import SearchConfig
from raykd.search.journal import Trial
from raykd.search.lost_trials import any_loss_is_a_death
from raykd.search.schedule import PerArm
from raykd.search.trial_process import TrialProcess
from raykd.search.trial_spec import Outcome, Trials, TrialSpec
from raykd.training.events import Evaluated

log = logging.getLogger(__name__)


class Unsaved:
    """Pickled as an empty object: Tune saves its state to resume by itself, but a sweep resumes from its journal."""

    def __reduce__(self) -> tuple:
        return Unsaved, ()


class _Suggestions(Unsaved, Searcher):
    """Passes the next trial to Tune."""

    def __init__(self, callback: "TuneCallback", most: int) -> None:
        super().__init__(metric="score", mode="max")
        self.callback, self.most = callback, most

    def suggest(self, trial_id: str) -> Any:
        if len(self.callback.running) >= self.most:
            return None
        spec = self.callback.next_trial(trial_id)
        return Searcher.FINISHED if spec is None else {"spec": spec}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Not needed: `TuneCallback` handles it."""

    def save(self, checkpoint_path: str) -> None:
        """Not needed, see `Unsaved`."""


class TuneCallback(Unsaved, tune.Callback):
    """Translates what Tune reports for `trials`.

    room: limits how long trials wait for resources while none is running.
    running: the trials that have not ended, by Tune's trial id.
    placed: those of several workers, which have their resources.
    error: the first exception of `trials`. It is kept here because Tune would treat it as the trial's own and retry the
        trial.
    """

    def __init__(self, trials: Trials, room: RoomWait) -> None:
        self.trials, self.room = trials, room
        self.running: dict[str, TrialSpec] = {}
        self.placed: set[str] = set()
        self.error: BaseException | None = None

    def next_trial(self, trial_id: str) -> TrialSpec | None:
        spec = self._call(self.trials.next_trial)
        if spec is not None:
            self.running[trial_id] = spec
        return spec

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        if not self.running or any(trial.status == "RUNNING" for trial in trials) or self.trials.teachers_work():
            self.room.reset()
        else:
            self._guarded(self._wait)

    def _wait(self) -> None:
        training = next(iter(self.running.values())).training
        more = f" and {len(self.running) - 1} more" if len(self.running) > 1 else ""
        if text := self.room.training(training.job.name + more, training.job.key, training.resources):
            log.info(text)

    def _call(self, method: Callable[..., Any], *given: Any) -> Any:
        """Call a method of `trials`. Its time is no wait for resources: MLflow can be away for long."""
        result = self._guarded(method, *given)
        self.room.reset()
        return result

    def _guarded(self, call: Callable[..., Any], *given: Any) -> Any:
        try:
            return call(*given)
        except Exception as error:
            self.error = self.error or error

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        events = result.pop("events", [])  # removed, because Tune keeps every trial's last result
        result.pop("config", None)
        if result.get("placed"):
            self.placed.add(trial.trial_id)
        elif result.get("waiting"):
            self.placed.discard(trial.trial_id)
        if result.get("outcome") == Outcome.NO_ROOM and not self.placed & (self.running.keys() - {trial.trial_id}):
            self.error = self.error or NoRoom(result["reason"])  # the next trial would not get any either
        if any(isinstance(event, Evaluated) for event in events):
            trial.run_metadata.num_failures = 0  # ray.max_retries counts deaths without progress between them
        if (spec := self.running.get(trial.trial_id)) is not None:
            self._call(self.trials.on_result, spec, events, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if (spec := self.running.pop(trial.trial_id, None)) is not None:
            last = trial.last_result or {}
            # None: the scheduler pruned it while it ran. (If the sweep is stopped, the trial reports that itself.)
            outcome = last.get("outcome", Outcome.STOPPED) or Outcome.PRUNED
            if outcome == Outcome.NO_ROOM and self.error:  # which ends the search
                outcome = Outcome.FAILED
            reason, permanent = last.get("reason", ""), last.get("permanent", False)
            self._call(self.trials.on_end, spec, outcome, reason, permanent)
        _forget(trial)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if (spec := self.running.get(trial.trial_id)) is not None:
            log.warning("%s: its process died (%s)", spec.training.job.name, _cause(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if (spec := self.running.pop(trial.trial_id, None)) is not None:
            # If two calls to a dead process fail at once, Tune gives up at the second: by then the trial waits, and a
            # waiting trial that fails is not retried, however many retries are left.
            early = trial.num_failures <= trial.max_failures
            reason = f"{spec.training.job.name}: its process died ({_cause(trial)})"
            outcome = Outcome.DIED if early else Outcome.FAILED
            self._call(self.trials.on_end, spec, outcome, reason, False)
        _forget(trial)


def _cause(trial: Any) -> str:
    """Of the last death of its process. Tune copies the file to where it looks for it itself only later."""
    file = trial.pickled_error_file
    return (
        cause_of(cloudpickle.loads(Path(file).read_bytes()))
        if file and Path(file).exists()
        else "for an unknown reason"
    )


def _forget(trial: Any) -> None:
    """Drop the job of an ended trial: Tune keeps every trial in memory, to resume it, which is not used."""
    trial.evaluated_params = {}
    trial.config = {"spec": TrialSpec(Trial("", 0, {}, 0), None, "", True)}  # type: ignore[arg-type]


class _Stop(Unsaved, tune.Stopper):
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.should_stop()


def search(
    trials: Trials,
    settings: SearchConfig,
    ray_settings: RayConfig,
    most: int,
    stop: Flag,
    late: Callable[[], bool],
    folder: Path,
) -> None:
    """Run trials until there is no next one and all have ended.

    most: maximum number of concurrent trials.
    stop: asks trials to write a checkpoint and stop.
    late: whether to kill those that have not stopped.
    folder: for Tune's own files.

    An exception in `trials` stops all of them and is raised, and so is a wait for resources that exceeds ray.timeout_s.
    """
    callback = TuneCallback(trials, RoomWait(ray_settings.timeout_s))

    def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What a trial holds. Trials of several workers hold nothing themselves, because their workers do."""
        needs = config["spec"].training.resources
        if needs.workers > 1:
            return tune.PlacementGroupFactory([{"CPU": TRAIN_CONTROLLER_CPUS}])
        return tune.PlacementGroupFactory([needs.bundle()], bundle_label_selector=[dict(needs.node_labels)])

    process = tune.with_resources(tune.with_parameters(TrialProcess, settings=ray_settings, stop=stop), placement)
    tuner = tune.Tuner(
        process,
        tune_config=tune.TuneConfig(
            search_alg=_Suggestions(callback, most),
            scheduler=PerArm(settings),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            trial_name_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            stop=_Stop(lambda: callback.error is not None or late()),
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=ray_settings.max_retries),
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns about the loggers that are turned off above
    with any_loss_is_a_death():
        tuner.fit()
    if callback.error:
        raise callback.error
