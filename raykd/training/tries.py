"""One process's try of a training: a Ray task on CPUs, on GPUs an actor that can run the next training, too."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.cluster.flags import Flag
from raykd.config.schema import RayConfig
from raykd.training.access import Training
from raykd.training.events import Evaluated, Event, LogitsMissing, Started, Warned, WorkersLost
from raykd.training.processes import run_training

# A process that is older is not passed on, so that other commands get the GPU, too. Its imports take some 12 s.
_PASSED_ON_SECONDS = 600.0
_task = ray.remote(max_retries=0)(run_training)  # on CPUs Ray itself reuses processes


@ray.remote
class _GpuProcess:
    """Runs trainings one after another on GPUs that it holds until it is killed.

    A process that has used one GPU stays on it even if Ray assigns it another, so a task there would need a process of
    its own, and wait for its imports.
    """

    def run(self, training: Training, settings: RayConfig, stop: Flag) -> Iterator[Event]:
        yield from run_training(training, settings, stop)
        gc.collect()  # models are in reference cycles
        torch.cuda.empty_cache()


@dataclass
class Try:
    """One process's try of a training.

    before: how many others have ended in vain since its last evaluation.
    why: what ended the process before it; "" if logits were missing, or if it is the first.
    begun: whether an event says that it has its resources.
    lacks_logits: whether it ends because logits are missing.
    process: on GPUs; None: it is a task.
    reused: whether `process` has run another training before.
    fresh: whether it needs one that has not.
    """

    training: Training
    before: int = 0
    why: str = ""
    begun: bool = False
    lacks_logits: bool = False
    process: Any = None
    reused: bool = False
    fresh: bool = False
    _held_since: float = 0.0  # when its process was first seen to have its resources

    def note(self, event: Event) -> None:
        if not (self.begun or self.reused):
            self._held_since = time.monotonic()
        if isinstance(event, WorkersLost):
            self.begun = False
        elif self.training.resources.workers == 1 or not isinstance(event, Started | Warned):
            self.begun = True
        if isinstance(event, Evaluated):
            self.before = 0  # ray.max_retries counts the deaths without progress between them
        self.lacks_logits |= isinstance(event, LogitsMissing)

    def next(self, training: Training, why: str = "") -> "Try":
        return Try(training, self.before + 1, why)

    def start(self, settings: RayConfig, stop: Flag) -> Any:
        """Start it, in a process of its own unless it has taken one over. Returns its stream of events.

        For several workers, Ray Train reserves their resources. The process that starts it reserves none, because the
        workers might wait for those. It runs on the driver's node, as does Ray Train's controller, so the network
        cannot separate them.
        """
        given, resources = (self.training, settings, stop), self.training.resources
        if resources.workers > 1:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            return _task.options(num_cpus=0, num_gpus=0, scheduling_strategy=here).remote(*given)
        if not resources.num_gpus:
            return _task.options(**resources.options()).remote(*given)
        self.process = self.process or _GpuProcess.options(**resources.options()).remote()  # type: ignore[attr-defined]
        return self.process.run.remote(*given)

    def take_over(self, other: "Try") -> None:
        """Take the process of a training that is done. Call `cancel` before and `start` after it."""
        self.process, self.reused, self._held_since = other.process, True, other._held_since

    def can_take_over(self, other: "Try") -> bool:
        """Whether it can run in the process of `other`, and that is not too old to be passed on."""
        young = time.monotonic() - other._held_since < _PASSED_ON_SECONDS
        alike = self.training.resources == other.training.resources
        return self.process is not None and not (self.reused or self.fresh) and alike and young

    def cancel(self, stream: Any) -> None:
        """End it at once. stream: its events."""
        if self.process is None:
            ray.cancel(stream, force=True)
        else:
            self.release()

    def release(self) -> None:
        """End its process on GPUs, if it has one."""
        if self.process is not None:
            ray.kill(self.process)
            self.process, self.reused, self._held_since = None, False, 0.0
