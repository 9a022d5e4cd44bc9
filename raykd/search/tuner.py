"""Ray Tune: the board's trials, in processes that go from one trial to the next.

Tune places, watches and restarts the trials and asks the scheduler; what comes next and what is kept is the
board's to say, and a trial's own checkpoint is in its job's folder, so nothing of Tune's state has to survive.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.search import Searcher

from raykd.cluster.flags import Flag
from raykd.cluster.resources import Resources
from raykd.cluster.room import NoRoom, RoomWait
from raykd.common.errors import DivergedError, UserError
from raykd.config.schema import RayConfig
from raykd.config.search import SearchConfig
from raykd.search.journal import Trial
from raykd.search.schedule import PerArm, TrialSpec
from raykd.training.evaluation import LOWER_IS_BETTER
from raykd.training.events import Evaluated, Event, Locked, LogitsMissing, Progressed, Stopped, WaitingForResources
from raykd.training.processes import TRAIN_CONTROLLER_CPUS, cause_of, run_training

log = logging.getLogger(__name__)


class TrialProcess(tune.Trainable):
    """Drives a training from evaluation to evaluation; between two of them nothing runs, so it can be stopped."""

    events: Iterator[Event]

    def setup(self, config: dict[str, Any], settings: RayConfig, stop: Flag) -> None:
        self.settings, self.stop_flag = settings, stop
        self._begin(config["handed"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config["handed"])
        return True

    def _begin(self, handed: TrialSpec) -> None:
        self.handed, self.best = handed, float("-inf")
        self.events = run_training(handed.training, self.settings, self.stop_flag, limited=True)

    def step(self) -> dict[str, Any]:
        events: list[Event] = []
        job = self.handed.training.job
        try:
            for event in self.events:
                if not isinstance(event, Progressed):
                    events.append(event)
                match event:
                    case Stopped():
                        return self._result(events, "stopped")
                    case LogitsMissing():
                        return self._result(events, "missing")
                    case WaitingForResources() | Locked():  # shown at once; no scheduler looks at this result
                        return self._result(events, "running") | {"waiting": True}
                    case Evaluated():
                        self.best = max(self.best, signed(event.metrics, self.handed.metric))
                        progress = 100.0 * event.total_step / (event.steps * job.method.generations)
                        return self._result(events, "running", progress) | {"seconds": event.seconds}
        except UserError as error:
            kind = {"permanent": isinstance(error, DivergedError), "no_room": isinstance(error, NoRoom)}
            return self._result(events, "failed", reason=str(error)) | kind
        except Exception as error:
            if "CUDA" in str(error) or isinstance(error, getattr(torch, "AcceleratorError", ())):
                raise  # this process can compute no more: Tune throws it away, and the trial goes on in another
            return self._result(events, "failed", reason=f"{job.name}: {cause_of(error)}")
        result = json.loads((job.folder / "result.json").read_text())
        self.best = signed(result["generations"][result["best"]]["validation"], self.handed.metric)
        return self._result(events, "finished", 100.0) | {"seconds": result["seconds"]}

    def _result(self, events: list[Event], state: str, progress: float = 0.0, reason: str = "") -> dict[str, Any]:
        found = {"score": self.best, "progress": progress, "state": state, "reason": reason, "events": events}
        return found | {"done": state != "running"}

    def cleanup(self) -> None:
        self.events.close()  # type: ignore[attr-defined]

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The job's folder has it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """The job's folder has it."""


def signed(metrics: dict[str, float], metric: str) -> float:
    """Higher is better."""
    return -metrics[metric] if metric in LOWER_IS_BETTER else metrics[metric]


class Unsaved:
    """Tune pickles what it is given, for a resuming of its own; the journal is the sweep's."""

    def __reduce__(self) -> tuple:
        return Unsaved, ()


class _Suggestions(Unsaved, Searcher):
    """Hands Tune what the board gives."""

    def __init__(self, give: Callable[[str], TrialSpec | None], most: int, live: dict[str, TrialSpec]) -> None:
        super().__init__(metric="score", mode="max")
        self.give, self.most, self.live = give, most, live

    def suggest(self, trial_id: str) -> Any:
        if len(self.live) >= self.most:
            return None
        handed = self.give(trial_id)
        return Searcher.FINISHED if handed is None else {"handed": handed}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The listener does it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is needed of it."""


class TuneCallback(Unsaved, tune.Callback):
    """Tells what happens: hears(handed, events, result), and ends(handed, state, reason, permanent) once.

    error: the first that one of them raised. Tune would take it for the trial's, and try that again. room: limits how
    long trials wait for resources while none runs; busy: whether this command's teachers hold some.
    """

    def __init__(
        self,
        live: dict[str, TrialSpec],
        hears: Callable[..., Any],
        ends: Callable[..., Any],
        room: RoomWait,
        busy: Callable[[], bool],
    ) -> None:
        self.live, self._hears, self._ends, self.room, self.busy = live, hears, ends, room, busy
        self.error: BaseException | None = None

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        if not self.live or any(trial.status == "RUNNING" for trial in trials) or self.busy():
            self.room.reset()
        else:
            self._guard(self._wait)

    def _wait(self) -> None:
        training = next(iter(self.live.values())).training
        more = f" and {len(self.live) - 1} more" if len(self.live) > 1 else ""
        if text := self.room.training(training.job.name + more, training.job.key, training.resources):
            log.info(text)

    def hears(self, *given: Any) -> None:
        self._guard(self._hears, *given)

    def ends(self, *given: Any) -> None:
        self._guard(self._ends, *given)

    def _guard(self, call: Callable[..., Any], *given: Any) -> None:
        try:
            call(*given)
        except Exception as error:
            self.error = self.error or error

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        events = result.pop("events", [])  # once: Tune keeps every trial's last result
        result.pop("config", None)
        if result.get("no_room"):  # nor would the next trial find any
            self.error = self.error or NoRoom(result["reason"])
        if (handed := self.live.get(trial.trial_id)) is not None:
            self.hears(handed, events, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if (handed := self.live.pop(trial.trial_id, None)) is not None:
            last = trial.last_result or {}
            state = last.get("state", "stopped")
            # It was still running: the scheduler has stopped it (a sweep that is stopped lets it say so itself).
            self.ends(
                handed, "pruned" if state == "running" else state, last.get("reason", ""), last.get("permanent", False)
            )
        _forget(trial)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if (handed := self.live.pop(trial.trial_id, None)) is not None:
            error = trial.get_error()
            why = cause_of(error) if error else "its process died again and again"
            self.ends(handed, "failed", f"{handed.training.job.name}: {why}", False)
        _forget(trial)


def _forget(trial: Any) -> None:
    """Tune keeps every trial for its own resuming, which is not used: a thousand jobs need not stay in memory."""
    trial.evaluated_params = {}
    trial.config = {"handed": TrialSpec(Trial("", 0, {}, 0), None, "", True)}  # type: ignore[arg-type]


class _Stop(Unsaved, tune.Stopper):
    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.asked()


def search(
    give: Callable[[str], TrialSpec | None],
    hears: Callable[..., Any],
    ends: Callable[..., Any],
    settings: SearchConfig,
    ray_settings: RayConfig,
    resources: Resources,
    most: int,
    stop: Flag,
    late: Callable[[], bool],
    folder: Path,
    busy: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials until `give` has no more, and all have ended. most: at once.

    stop: asks trials to write a checkpoint and end. late: whether those that have not are ended. What `give`, `hears`
    or `ends` raises ends all, and is raised; so does a wait of all trials for resources that is over ray.timeout_s.
    busy: whether this command's teachers hold resources.
    """
    live: dict[str, TrialSpec] = {}
    listener = TuneCallback(live, hears, ends, RoomWait(ray_settings.timeout_s), busy)

    def handed(trial_id: str) -> TrialSpec | None:
        try:
            found = give(trial_id)
        except Exception as error:
            listener.error = listener.error or error
            found = None
        if found is not None:
            live[trial_id] = found
        return found

    needs = tune.PlacementGroupFactory([{"CPU": TRAIN_CONTROLLER_CPUS}])
    if resources.workers == 1:
        labels = [dict(resources.node_labels)]
        needs = tune.PlacementGroupFactory([resources.bundle()], bundle_label_selector=labels)
    process = tune.with_resources(tune.with_parameters(TrialProcess, settings=ray_settings, stop=stop), needs)
    tuner = tune.Tuner(
        process,
        tune_config=tune.TuneConfig(
            search_alg=_Suggestions(handed, most, live),
            scheduler=PerArm(settings),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            trial_name_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            stop=_Stop(lambda: listener.error is not None or late()),
            callbacks=[listener],
            failure_config=tune.FailureConfig(max_failures=ray_settings.max_retries),
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the logs that are turned off above
    tuner.fit()
    if listener.error:
        raise listener.error
