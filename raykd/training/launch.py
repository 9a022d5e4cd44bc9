"""Runs trainings in processes of a cluster, and starts those again that die."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.cluster.causes import DEATHS, cause_of
from raykd.cluster.flags import Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.room import RoomWait
from raykd.common.device_errors import gpu_failed, gpu_is_full
from raykd.common.errors import TrainingError, UserError
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.training.access import Training
from raykd.training.events import (
    Evaluated,
    Event,
    Failed,
    LogitsMissing,
    Restarted,
    Started,
    Stopping,
    Warned,
    WorkersLost,
)
from raykd.training.processes import run_training

log = logging.getLogger(__name__)
_STOP_SECONDS = 20.0  # Kubernetes kills 30 s after its SIGTERM
_task = ray.remote(max_retries=0)(run_training)  # on CPUs Ray itself reuses processes


@ray.remote
class _GpuProcess:
    """Runs trainings one after another on GPUs that it holds until it ends.

    A process that has used one GPU stays on it even if Ray assigns it another, so a task there would need a process of
    its own, and wait for its imports.
    """

    def run(self, training: Training, settings: RayConfig, stop: Flag) -> Iterator[Event]:
        yield from run_training(training, settings, stop)
        torch.cuda.empty_cache()  # others may share the GPU


@dataclass
class _Try:
    """One process's try of a training.

    process: on GPUs; None: it is a task.
    before: how many others have ended in vain since its last evaluation.
    why: what ended the process before it; "" if logits were missing, or if it is the first.
    begun: whether it has its resources.
    lacks_logits: whether it ends because logits are missing.
    """

    training: Training
    process: Any = None
    before: int = 0
    why: str = ""
    begun: bool = False
    lacks_logits: bool = False

    def note(self, event: Event) -> None:
        if isinstance(event, WorkersLost):
            self.begun = False
        elif self.training.resources.workers == 1 or not isinstance(event, Started | Warned):
            self.begun = True
        if isinstance(event, Evaluated):
            self.before = 0  # ray.max_retries counts the deaths without progress between them
        self.lacks_logits |= isinstance(event, LogitsMissing)

    def next(self, training: Training, why: str = "") -> "_Try":
        return _Try(training, before=self.before + 1, why=why)

    def start(self, settings: RayConfig, stop: Flag) -> Any:
        """Start it, in a new process if it has none on a GPU. Returns its stream of events.

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

    def cancel(self, stream: Any) -> None:
        if self.process is None:
            ray.cancel(stream, force=True)
        else:
            ray.kill(self.process)


def run_trainings(
    trainings: Sequence[Training],
    settings: RayConfig,
    on_event: Callable[[Job, Event], None],
    check: Callable[[], None] = lambda: None,
    precompute_missing: Callable[[], None] | None = None,
    busy: Callable[[], bool] = lambda: False,
) -> dict[str, UserError]:
    """Run all trainings, as many at once as the cluster has room for. Returns the failed ones' errors, by fingerprint.

    Ray queues those that have no room yet; they fail once nothing of this command has held resources for
    ray.timeout_s. If a training's process dies, it is started again and resumes from its checkpoint, up to
    ray.max_retries times, as it is after an error of its GPU; also if the memory of a GPU ends that it shares by a
    measured number, with a larger share.

    on_event: called with each event.
    check: called between events; if it raises, all trainings are stopped.
    precompute_missing: called when a training lacks logits that nobody is computing, before it is started again. None:
        such a training fails.
    busy: whether this command's teachers hold resources.
    """
    stop = Flag(trainings[0].job.store, "stop")
    running = {one.start(settings, stop): one for one in map(_Try, trainings)}
    failed: dict[str, UserError] = {}
    restarts = Counter[str]()  # by fingerprint
    room = RoomWait(settings.timeout_s)
    try:
        while running:
            check()
            if busy() or any(one.begun for one in running.values()):
                room.reset()
            try:
                waits = [one.training for one in running.values()]
                if text := room.training(_names(waits), waits[0].job.key, waits[0].resources):
                    log.info(text)
                    remove_orphans()  # an earlier try may hold what this one needs
            except TrainingError as error:
                for stream, one in running.items():
                    failed[one.training.job.fingerprint] = error
                    on_event(one.training.job, Failed(str(error)))
                    one.cancel(stream)
                return failed
            for stream in ray.wait(list(running), num_returns=1, timeout=1)[0]:
                one = running[stream]
                job = one.training.job
                try:
                    event = ray.get(next(stream))
                except (StopIteration, RayError) as error:
                    del running[stream]
                    after = _after(one, error, settings.max_retries, precompute_missing is not None)
                else:
                    one.note(event)
                    on_event(job, event)
                    continue
                if one.process is not None:
                    _pass_on(one, running, settings, stop) if after is None else ray.kill(one.process)
                if isinstance(after, UserError):
                    failed[job.fingerprint] = after
                    if one.training.resources.workers > 1:
                        remove_orphans()  # what its last try has reserved
                    on_event(job, Failed(str(after)))
                elif after is not None:
                    if after.why:
                        restarts[job.fingerprint] += 1
                        on_event(job, Restarted(restarts[job.fingerprint], after.why))
                    elif precompute_missing:
                        precompute_missing()  # uses the resources that the training has released
                    running[after.start(settings, stop)] = after
    except BaseException:  # SIGTERM and Ctrl-C among them
        _stop(running, stop, on_event)
        raise
    return failed


def _after(ended: _Try, error: StopIteration | RayError, retries: int, can_precompute: bool) -> _Try | UserError | None:
    """What follows when a process has ended: the next try, the training's error, or None, because it is done.

    error: how its stream of events has ended.
    retries: ray.max_retries.
    can_precompute: whether logits that are missing can be computed.
    """
    training, job, resources = ended.training, ended.training.job, ended.training.resources
    retry = ended.before < retries
    if isinstance(error, StopIteration):
        if not ended.lacks_logits:
            return None
        if retry and can_precompute:
            return ended.next(training)
        return TrainingError(
            f"{job.name}: logits that it needs are missing in {job.logits} repeatedly. "
            f"See what is wrong with the store: raykd logits verify {job.logits}"
        )
    if isinstance(error, DEATHS):
        why = cause_of(error)
        log.warning("%s: its process died (%s)", job.name, why)
        if retry:
            return ended.next(training, "its process died")
        return TrainingError(
            f"{job.name}: its process died {ended.before + 1} times ({why}). If it is memory, lower "
            f"training.batch_size or raise training.accumulation; else see Ray's logs"
        )
    cause = error.cause if isinstance(error, RayTaskError) else None
    if gpu_failed(cause) and retry:
        log.warning("%s: its GPU failed (%s)", job.name, cause_of(error))
        return ended.next(training, "its GPU failed")
    if resources.measured and gpu_is_full(cause):
        fewer = replace(training, resources=resources.halved)
        why = f"out of GPU memory with {resources.per_gpu} on each GPU, now {fewer.resources.per_gpu}"
        return ended.next(fewer, why)
    log.debug("%s failed", job.name, exc_info=error)
    return cause if isinstance(cause, UserError) else TrainingError(f"{job.name}: {cause_of(error)}")


def _pass_on(done: _Try, running: dict[Any, _Try], settings: RayConfig, stop: Flag) -> None:
    """Give a GPU process that is done to the first training that waits for the same resources, or end it."""
    for stream, one in running.items():
        if one.process is not None and not one.begun and one.training.resources == done.training.resources:
            one.cancel(stream)
            one.process = done.process
            del running[stream]
            running[one.start(settings, stop)] = one
            return
    ray.kill(done.process)


def _names(trainings: Sequence[Training]) -> str:
    first = trainings[0].job.name
    return first if len(trainings) == 1 else f"{first} and {len(trainings) - 1} more"


def _stop(running: dict[Any, _Try], stop: Flag, on_event: Callable[[Job, Event], None]) -> None:
    """Give the running trainings time to write a checkpoint, then cancel all, also those that have not begun."""
    stop.up()
    for one in running.values():
        on_event(one.training.job, Stopping())
    limit = time.monotonic() + _STOP_SECONDS
    try:
        while running and time.monotonic() < limit:
            for stream in ray.wait(list(running), num_returns=1, timeout=1)[0]:
                job = running[stream].training.job
                try:
                    on_event(job, ray.get(next(stream)))
                except StopIteration:
                    del running[stream]  # on a GPU its process ends, because nothing else refers to it
                except RayError as error:
                    del running[stream]
                    log.warning("%s: wrote no checkpoint at the end (%s)", job.name, cause_of(error))
    finally:
        for stream, one in running.items():
            one.cancel(stream)
        stop.down()
