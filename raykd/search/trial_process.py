"""The process in which Ray Tune runs trials, one after another."""

import json
from collections.abc import Iterator
from typing import Any

import torch
from ray import tune

from raykd.cluster.causes import DEATHS, cause_of
from raykd.cluster.flags import Flag
from raykd.cluster.room import NoRoom
from raykd.common.device_errors import cuda_error, gpu_is_full
from raykd.common.errors import DivergedError, UserError
from raykd.common.output_files import RESULT
from raykd.config.schema import RayConfig
from raykd.plan.job import best_scores
from raykd.search.trial_spec import Outcome, TrialSpec, signed
from raykd.training.events import (
    Evaluated,
    Event,
    Locked,
    LogitsMissing,
    Placed,
    Progressed,
    Resumed,
    Stopped,
    WaitingForResources,
    WorkersLost,
    stored_events,
)
from raykd.training.processes import run_training


class TrialProcess(tune.Trainable):
    """Runs a training from one evaluation to the next. Between two evaluations it is idle, so it can be stopped."""

    events: Iterator[Event]

    def setup(self, config: dict[str, Any], settings: RayConfig, stop: Flag) -> None:
        self.settings, self.stop_flag, self.reused = settings, stop, False
        self._begin(config["spec"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.reused = True
        self._begin(new_config["spec"])
        return True

    def _begin(self, spec: TrialSpec) -> None:
        self.spec, self.best = spec, float("-inf")
        self.seconds = self._reported = 0.0  # of the training so far, and those that the sweep knows of
        self.events = run_training(spec.training, self.settings, self.stop_flag, limited=True)

    def step(self) -> dict[str, Any]:
        events: list[Event] = []
        job, reason = self.spec.training.job, ""
        try:
            for event in self.events:
                if not isinstance(event, Progressed):
                    events.append(event)
                match event:
                    case Stopped():
                        return self._result(events, Outcome.STOPPED)
                    case LogitsMissing():
                        return self._result(events, Outcome.LOGITS_MISSING)
                    # What is waited for is shown at once; schedulers ignore this result.
                    case WaitingForResources() | Locked() | WorkersLost():
                        return self._result(events) | {"waiting": True}
                    case Resumed():
                        self._restore(event.total_step)
                    case Placed():
                        return self._result(events) | {"waiting": True, "placed": True}
                    case Evaluated():
                        self.best = max(self.best, signed(event.metrics, self.spec.metric))
                        self.seconds = event.seconds
                        progress = 100.0 * event.total_step / (event.steps * job.method.generations)
                        return self._result(events, progress=progress)
        except UserError as error:
            outcome = Outcome.NO_ROOM if isinstance(error, NoRoom) else Outcome.FAILED
            return self._result(events, outcome, reason=str(error)) | {"permanent": isinstance(error, DivergedError)}
        except DEATHS:  # of one of its several workers: Tune starts another process, in which it resumes
            raise
        except Exception as error:
            resources = self.spec.training.resources
            # With a GPU for itself it would find no more memory in another process either, unless the training before
            # it has left memory in pieces in this one. The new process uses up one of its ray.max_retries.
            alone = resources.num_gpus >= 1 and not self.reused
            full = gpu_is_full(error) and (resources.measured or alone)
            if cuda_error(error) or (gpu_is_full(error) and not full):
                raise  # Tune replaces the process, and the trial resumes in a new one
            outcome = Outcome.GPU_FULL if full and resources.measured else Outcome.FAILED
            reason = f"{job.name}: {cause_of(error)}"
        if reason:  # outside the handler, whose traceback holds the memory that the process's next trial needs
            torch.cuda.empty_cache()
            return self._result(events, outcome, reason=reason)
        result = json.loads((job.folder / RESULT).read_text())
        self.best = signed(best_scores(result)["validation"], self.spec.metric)
        self.seconds = result["seconds"]
        return self._result(events, Outcome.FINISHED, 100.0)

    def _restore(self, step: int) -> None:
        """Restore the score and the seconds of an earlier process.

        step: of its checkpoint. Later evaluations belong to a try whose checkpoints are gone.
        """
        for event in stored_events(self.spec.training.job.folder):
            if isinstance(event, Evaluated) and event.total_step <= step:
                self.seconds = self._reported = event.seconds
                if self.spec.metric in event.metrics:
                    self.best = max(self.best, signed(event.metrics, self.spec.metric))

    def _result(
        self, events: list[Event], outcome: Outcome | None = None, progress: float = 0.0, reason: str = ""
    ) -> dict[str, Any]:
        """What Tune and the sweep receive of a step. outcome: None while the trial runs. progress: in percent."""
        spent, self._reported = max(0.0, self.seconds - self._reported), self.seconds
        result = {"score": self.best, "progress": progress, "outcome": outcome, "reason": reason, "events": events}
        return result | {"done": outcome is not None, "seconds": self.seconds, "spent": spent}

    def cleanup(self) -> None:
        self.events.close()  # type: ignore[attr-defined]

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Not needed: the checkpoint is in the job's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Not needed: the checkpoint is in the job's folder."""
