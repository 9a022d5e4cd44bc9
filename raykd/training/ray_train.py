"""A training of several workers: a Ray Train run, and how it ends when one of them fails."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.cluster.causes import DEATHS, cause_of
from raykd.cluster.flags import AnyFlag, Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.resources import Resources
from raykd.cluster.room import RoomWait
from raykd.common.errors import TrainingError, UserError
from raykd.common.ranks import DistContext
from raykd.common.units import counted
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.training.access import TeacherAccess
from raykd.training.events import (
    ControllerStarted,
    Evaluated,
    Event,
    GroupLost,
    Placed,
    WaitingForResources,
    WorkerFailed,
    WorkersLost,
)
from raykd.training.log_events import with_warnings
from raykd.training.loop import train

_ORPHANS_SECONDS = 5.0
_STOP_SECONDS = 20.0  # that workers have to write a checkpoint
_END_SECONDS = 5.0  # that workers which have all failed need to end by themselves


def train_distributed(
    job: Job, resources: Resources, access: TeacherAccess, settings: RayConfig, stop: Flag, limited: bool
) -> Iterator[Event]:
    """Yields the first worker's events, which come through a queue while `fit` waits in a thread.

    Before them Placed, once the workers have their resources.

    limited: until then, WaitingForResources from time to time, and TrainingError after ray.timeout_s.
    """
    from queue import Empty

    from ray.util.queue import Queue

    stop_this = Flag(job.store, "cut")  # this training alone
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On this node, because a process whose link to the queue is cut waits for minutes, or loses an event.
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = _trainer(job, resources, access, settings, AnyFlag((stop, stop_this)), queue)
    failure: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    placed, next_cleanup, room = False, 0.0, RoomWait(settings.timeout_s)
    losses = 0  # of workers, since the last evaluation
    controllers: list[Any] = []
    try:
        while True:
            alive = thread.is_alive()  # before the queue is read, so that no event is missed
            try:
                event = queue.get(timeout=0.5)
            except Empty:
                if not alive:
                    break
                if not placed and time.monotonic() > next_cleanup:  # an earlier try may hold what this one needs
                    remove_orphans()
                    next_cleanup = time.monotonic() + _ORPHANS_SECONDS
                if limited and not placed and (text := room.training(job.name, job.key, resources)):
                    yield WaitingForResources(text)
                continue
            match event:
                case ControllerStarted(actor):
                    controllers.append(actor)
                case WorkerFailed(error):
                    raise error
                case GroupLost(reason):
                    placed, room, losses = False, RoomWait(settings.timeout_s), losses + 1
                    if losses > settings.max_retries:
                        times = counted(losses, "time")
                        raise TrainingError(f"{job.name}: {reason} ({times} without an evaluation in between)")
                    yield WorkersLost(reason)
                case _:
                    placed, losses = True, 0 if isinstance(event, Evaluated) else losses
                    yield event
    except UserError:
        _end(thread, controllers, _END_SECONDS if placed else 0)
        raise
    except BaseException:  # nobody reads further events, so the workers must stop; GeneratorExit and Ray's among them
        stop_this.up()
        _end(thread, controllers, _STOP_SECONDS)
        raise
    finally:
        stop_this.down()
        queue.shutdown()
    if failure:
        for actor in controllers:  # a controller that has failed can leave its workers' resources reserved
            ray.kill(actor)
        remove_orphans()
        cause = getattr(failure[0], "controller_failure", failure[0])
        if isinstance(cause, DEATHS):  # Ray Train itself retries only some of them
            raise cause
        raise TrainingError(f"{job.name}: {cause_of(failure[0])}")


def _trainer(
    job: Job, resources: Resources, access: TeacherAccess, settings: RayConfig, stop: AnyFlag, queue: Any
) -> Any:
    """Ray Train's, a `TorchTrainer`. queue: takes the first worker's events."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raykd.training.controller import Introduce  # imports Ray Train, which a training of one worker does without

    return TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": job,
            "queue": queue,
            "threads": max(1, int(resources.num_cpus)),
            "stop": stop,
            "access": access,
            "gpus": resources.gpus,
            "timeout_s": settings.collective_timeout_s,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.num_gpus > 0,
            resources_per_worker=resources.bundle(),
            label_selector=dict(resources.node_labels) or None,
        ),
        torch_config=TorchConfig(
            # NCCL, which Ray Train takes for GPUs, refuses two workers on one.
            backend="gloo" if 0 < resources.num_gpus < 1 else None,
            timeout_s=settings.collective_timeout_s,
        ),
        run_config=RunConfig(
            name=f"{job.fingerprint[:12]}",
            storage_path=str(job.folder / "ray_train"),
            failure_config=FailureConfig(max_failures=-1),  # they are counted below, without progress between them
            callbacks=[Introduce(queue)],
        ),
    )


def _end(thread: threading.Thread, controllers: list[Any], seconds: float) -> None:
    """End the run. Workers that run on after `seconds` are killed, because they may wait for one that failed."""
    thread.join(seconds)
    if thread.is_alive():
        for controller in controllers:
            ray.kill(controller)  # its workers end with it
        thread.join(_STOP_SECONDS)
        remove_orphans()


def _train_worker(given: dict[str, Any]) -> None:
    """One of several workers, in a process of Ray Train's. It resumes from the job's own checkpoint."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(given["threads"])
    train_context = ray.train.get_context()
    device = ray.train.torch.get_device()
    limit = timedelta(seconds=given["timeout_s"])
    host = torch.distributed.new_group(backend="gloo", timeout=limit) if device.type == "cuda" else None
    context = DistContext(train_context.get_world_rank(), train_context.get_world_size(), device, host)
    if context.is_main:
        given["queue"].put(Placed())
    try:
        for event in with_warnings(train(given["job"], context, given["stop"], given["access"], given["gpus"])):
            if context.is_main:
                given["queue"].put(event)
    except UserError as error:  # if it were raised, Ray Train would try again in vain
        try:
            given["queue"].put(WorkerFailed(error))
        except RayError:  # another worker has sent it, and the run is ending
            return
