"""Trainings on Ray: one worker trains inside a reused process, several are a Ray Train run."""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from filelock import FileLock
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.cluster.causes import DEATHS, cause_of
from raykd.cluster.flags import Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.room import RoomWait
from raykd.common.atomic import quarantine
from raykd.common.environment import begin_task
from raykd.common.errors import DivergedError, TrainingError, UserError
from raykd.common.out_of_memory import gpu_is_full
from raykd.common.ranks import DistContext, local_device
from raykd.config.schema import RayConfig
from raykd.plan.job import RESULT, Job
from raykd.training.access import Training as Training
from raykd.training.events import (
    AlreadyTrained,
    Done,
    Evaluated,
    Event,
    Failed,
    LogitsMissing,
    Restarted,
    Started,
    Stopping,
    Stored,
    Warned,
    WorkersLost,
    to_json,
)
from raykd.training.job_lock import HOLDER, acquire
from raykd.training.log_events import with_warnings
from raykd.training.loop import train
from raykd.training.ray_train import train_distributed

log = logging.getLogger(__name__)
_METRICS = {
    "waited_share": "share of the time that a student waits for logits",
    "requests_in_flight": "live requests that a student has under way",
}
_STOP_SECONDS = 20.0  # Kubernetes kills 30 s after its SIGTERM


def run_training(training: Training, settings: RayConfig, stop: Flag, limited: bool = False) -> Iterator[Event]:
    """One training in a Ray worker process. On CPUs, Ray reuses the process, which saves the import of torch.

    Yields the events of `raykd.training.loop.train` and, before them, Started; Locked and AlreadyTrained where another
    command trains the same job; WaitingForResources and Placed where there are several workers. Keeps the history in
    `events.jsonl`.

    limited: several workers that are not placed within ray.timeout_s are an error.
    """
    yield from with_warnings(_run_training(training, settings, stop, limited))


def _run_training(training: Training, settings: RayConfig, stop: Flag, limited: bool) -> Iterator[Event]:
    begin_task()
    job, resources = training.job, training.resources
    torch.set_num_threads(max(1, int(resources.num_cpus)))
    job.folder.mkdir(parents=True, exist_ok=True)
    yield Started(job.steps, os.getpid())
    # Another command may be training the same job. When that process ends, even if it is killed, the lock is free.
    lock = FileLock(job.folder / "lock")
    yield from acquire(lock, job, settings.timeout_s)
    with lock:
        lock.release()  # what `acquire` acquired; the `with` still holds it
        (job.folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        if (result := job.folder / RESULT).exists() and (damage := job.damage()):
            quarantine(result, damage)
        if job.done:
            yield AlreadyTrained()
            return
        result.unlink(missing_ok=True)  # its models were deleted, so it is no result until they are saved again
        alone = resources.workers == 1
        events = (
            train(job, DistContext(device=local_device(resources.num_gpus)), stop, training.access)
            if alone
            else train_distributed(job, resources, training.access, settings, stop, limited)
        )
        try:
            for event in events:
                if isinstance(event, Stored):
                    with (job.folder / "events.jsonl").open("a") as file:
                        file.write("\n" + to_json(event))  # the last line may be unfinished if its process died
                        file.flush()
                        os.fsync(file.fileno())
                if isinstance(event, Evaluated):
                    _export(job, event)
                elif isinstance(event, Done) and not job.keep_model:
                    job.delete_models()
                yield event
        except DivergedError:  # no training can resume from its checkpoints; also deletes a born-again's own logits
            job.delete_models()
            raise


def _export(job: Job, event: Evaluated) -> None:
    """Set the metrics that Ray exports for a student."""
    _, lately = event.history[-1] if event.history else (0, {})  # evaluations can be closer together than logged steps
    for name, meaning in _METRICS.items():
        if name in lately:
            gauge = Gauge(f"raykd_student_{name}", meaning, tag_keys=("job",))
            gauge.set(lately[name], tags={"job": job.name})


_on_cpu = ray.remote(max_retries=0)(run_training)
# A process that has used one GPU stays on it even if Ray assigns it another, so each job on a GPU has a new process.
_on_gpu = ray.remote(max_retries=0, max_calls=1)(run_training)


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
    ray.max_retries times; also if the memory of a GPU ends that it shares by a measured number, with a larger share.

    on_event: called with each event.
    check: called between events; if it raises, all trainings are stopped.
    precompute_missing: called when a training lacks logits that nobody is computing, before it is started again. None:
        such a training fails.
    busy: whether this command's teachers hold resources.
    """
    stop = Flag(trainings[0].job.store, "stop")
    running = {_start(training, settings, stop): (training, 0) for training in trainings}
    failed: dict[str, UserError] = {}
    restarts = Counter[str]()  # by fingerprint
    try:
        lacking: set[Any] = set()  # streams that ended because logits are missing
        begun: set[Any] = set()  # streams whose workers have their resources
        room = RoomWait(settings.timeout_s)
        while running:
            check()
            if begun & running.keys() or busy():
                room.reset()
            try:
                waits = [training for training, _ in running.values()]
                if text := room.training(_names(waits), waits[0].job.key, waits[0].resources):
                    log.info(text)
                    remove_orphans()  # an earlier try may hold what this one needs
            except TrainingError as error:
                for stream, (training, _) in running.items():
                    failed[training.job.fingerprint] = error
                    on_event(training.job, Failed(str(error)))
                    ray.cancel(stream, force=True)
                return failed
            for stream in ray.wait(list(running), num_returns=1, timeout=1)[0]:
                training, tries = running[stream]
                job = training.job
                try:
                    event = ray.get(next(stream))
                    if isinstance(event, WorkersLost):
                        begun.discard(stream)
                    elif training.resources.workers == 1 or not isinstance(event, Started | Warned):
                        begun.add(stream)
                    if isinstance(event, Evaluated):
                        running[stream] = (
                            training,
                            0,
                        )  # ray.max_retries counts the deaths without progress between them
                    on_event(job, event)
                    if isinstance(event, LogitsMissing):
                        lacking.add(stream)
                    continue
                except StopIteration:
                    if stream in lacking:
                        if precompute_missing is None or tries >= settings.max_retries:
                            failed[job.fingerprint] = TrainingError(
                                f"{job.name}: logits that it needs are missing in {job.logits} repeatedly. "
                                f"See what is wrong with the store: raykd logits verify {job.logits}"
                            )
                        else:
                            precompute_missing()  # uses the resources that the training has released
                            running[_start(training, settings, stop)] = (training, tries + 1)
                except DEATHS as error:
                    why = cause_of(error)
                    log.warning("%s: its process died (%s)", job.name, why)
                    if tries < settings.max_retries:
                        restarts[job.fingerprint] += 1
                        on_event(job, Restarted(restarts[job.fingerprint]))
                        running[_start(training, settings, stop)] = (training, tries + 1)
                    else:
                        failed[job.fingerprint] = TrainingError(
                            f"{job.name}: its process died {tries + 1} times ({why}). If it is memory, lower "
                            f"training.batch_size or raise training.accumulation; else see Ray's logs"
                        )
                except RayTaskError as error:
                    cause, resources = error.cause, training.resources
                    if resources.measured and gpu_is_full(cause):
                        fewer = replace(training, resources=resources.halved)
                        why = f"out of GPU memory with {resources.per_gpu} on each GPU, now {fewer.resources.per_gpu}"
                        restarts[job.fingerprint] += 1
                        on_event(job, Restarted(restarts[job.fingerprint], why))
                        running[_start(fewer, settings, stop)] = (fewer, tries + 1)
                        del running[stream]
                        continue
                    known = isinstance(cause, UserError)
                    failed[job.fingerprint] = cause if known else TrainingError(f"{job.name}: {cause_of(error)}")
                    log.debug("%s failed", job.name, exc_info=error)
                except RayError as error:
                    failed[job.fingerprint] = TrainingError(f"{job.name}: {cause_of(error)}")
                if job.fingerprint in failed:
                    if training.resources.workers > 1:
                        remove_orphans()  # what its last try has reserved
                    on_event(job, Failed(str(failed[job.fingerprint])))
                del running[stream]
    except BaseException:  # SIGTERM and Ctrl-C among them
        _stop({stream: training.job for stream, (training, _) in running.items()}, stop, on_event)
        raise
    return failed


def _names(trainings: Sequence[Training]) -> str:
    first = trainings[0].job.name
    return first if len(trainings) == 1 else f"{first} and {len(trainings) - 1} more"


def _stop(running: dict[Any, Job], stop: Flag, on_event: Callable[[Job, Event], None]) -> None:
    """Give the running trainings time to write a checkpoint, then cancel all, also those that have not begun."""
    stop.up()
    for job in running.values():
        on_event(job, Stopping())
    limit = time.monotonic() + _STOP_SECONDS
    try:
        while running and time.monotonic() < limit:
            for stream in ray.wait(list(running), num_returns=1, timeout=1)[0]:
                try:
                    on_event(running[stream], ray.get(next(stream)))
                except StopIteration:
                    del running[stream]
                except RayError as error:
                    log.warning("%s: wrote no checkpoint at the end (%s)", running.pop(stream).name, cause_of(error))
    finally:
        for stream in running:
            ray.cancel(stream, force=True)
        stop.down()


def _start(training: Training, settings: RayConfig, stop: Flag) -> Any:
    """Start a training. Returns its stream of events.

    For several workers, Ray Train reserves their resources. The process that starts it reserves none, because the
    workers might wait for those. It runs on the driver's node, as does Ray Train's controller, so the network cannot
    separate them.
    """
    resources = training.resources
    alone = resources.workers == 1
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = resources.options() if alone else {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": here}
    return (_on_gpu if alone and resources.num_gpus else _on_cpu).options(**options).remote(training, settings, stop)
