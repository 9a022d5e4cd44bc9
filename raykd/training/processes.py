"""Trainings on Ray: one worker trains inside a reused process, several are a Ray Train run."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from filelock import FileLock, Timeout
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.cluster.flags import Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.resources import Resources
from raykd.cluster.room import RoomWait
from raykd.common.atomic import quarantine
from raykd.common.environment import set_environment
from raykd.common.errors import DivergedError, TrainingError, UserError
from raykd.common.ranks import DistContext, local_device
from raykd.config.schema import RayConfig
from raykd.plan.job import RESULT, Job
from raykd.training.events import (
    AlreadyTrained,
    Done,
    Evaluated,
    Event,
    Failed,
    Locked,
    LogitsMissing,
    Restarted,
    Started,
    Stopping,
    Stored,
    Warned,
    to_json,
)
from raykd.training.loader import TeacherAccess
from raykd.training.log_events import with_warnings
from raykd.training.loop import train
from raykd.training.ray_train import cause_of, train_distributed

log = logging.getLogger(__name__)
_METRICS = {
    "waited_share": "share of the time that a student waits for logits",
    "requests_in_flight": "live requests that a student has under way",
}
_HOLDER = "lock.holder"  # the file that says which process holds the lock
_STOP_SECONDS = 20.0  # Kubernetes kills 30 s after its SIGTERM
TRAIN_CONTROLLER_CPUS = 0.01  # its workers hold the real ones; 0 is an error in Ray


@dataclass(frozen=True)
class Training:
    job: Job
    resources: Resources
    serving: TeacherAccess = field(default_factory=TeacherAccess)


def run_training(training: Training, settings: RayConfig, stop: Flag, limited: bool = False) -> Iterator[Event]:
    """One training in a Ray worker process. On CPUs Ray reuses it: importing torch costs seconds, a job does not.

    Yields the events of `raykd.training.loop.train` and, before them, Started; Locked and AlreadyTrained where another
    command trains the same job; WaitingForResources and Placed where there are several workers. Keeps the history in
    `events.jsonl`.

    limited: several workers that are not placed within ray.timeout_s are an error.
    """
    yield from with_warnings(_run_training(training, settings, stop, limited))


def _run_training(training: Training, settings: RayConfig, stop: Flag, limited: bool) -> Iterator[Event]:
    set_environment()
    job, resources = training.job, training.resources
    torch.set_num_threads(max(1, int(resources.num_cpus)))
    job.folder.mkdir(parents=True, exist_ok=True)
    yield Started(job.steps, os.getpid())
    # Another command may train the same job. Its end frees the lock, also if it is killed.
    lock = FileLock(job.folder / "lock")
    yield from _locked(lock, job, settings.timeout_s)
    with lock:
        lock.release()  # the acquisition of `_locked`; this one holds it still
        (job.folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        if (result := job.folder / RESULT).exists() and (damage := job.damage()):
            quarantine(result, damage)
        if job.done:
            yield AlreadyTrained()
            return
        result.unlink(missing_ok=True)  # its models were dropped: it counts when they are back
        alone = resources.workers == 1
        events = (
            train(job, DistContext(device=local_device(resources.num_gpus)), stop, training.serving)
            if alone
            else train_distributed(job, resources, training.serving, settings, stop, limited)
        )
        try:
            for event in events:
                if isinstance(event, Stored):
                    with (job.folder / "events.jsonl").open("a") as file:
                        file.write("\n" + to_json(event))  # the line before may be unfinished, if its process died
                        file.flush()
                        os.fsync(file.fileno())
                if isinstance(event, Evaluated):
                    _export(job, event)
                elif isinstance(event, Done) and not job.keep:
                    job.delete_models()
                yield event
        except DivergedError:  # nothing can resume from its checkpoints; a born-again's own logits are among them
            job.delete_models()
            raise


def _locked(lock: FileLock, job: Job, limit: float) -> Iterator[Event]:
    """Acquire the job's lock. TrainingError if nothing in the job's folder has changed for `limit` seconds."""
    announced, state, since = False, 0.0, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=1)
            return
        except Timeout:
            now = _last_written(job.folder)
            if now != state:
                state, since = now, time.monotonic()
            holder = job.folder / _HOLDER
            other = holder.read_text() if holder.exists() else "another process"
            if time.monotonic() - since > limit:
                raise TrainingError(
                    f"{job.name}: {other} holds {lock.lock_file}, and has written nothing within ray.timeout_s = "
                    f"{limit:g} s. End it, or raise ray.timeout_s"
                ) from None
            if not announced:
                announced = True
                yield Locked(other, str(lock.lock_file))


def _last_written(folder: Path) -> float:
    """When the newest file was written, locks apart; 0.0 if there is none. Drafts can vanish while this looks."""
    newest = 0.0
    for parent, _, names in os.walk(folder):  # not glob, which fails where a folder vanishes
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, 0.0 if name == "lock" else Path(parent, name).stat().st_mtime)
    return newest


def _export(job: Job, event: Evaluated) -> None:
    """What Ray's metrics port shows of a student."""
    _, lately = event.history[-1] if event.history else (0, {})  # evaluations may be closer than logged steps
    for name, meaning in _METRICS.items():
        if name in lately:
            gauge = Gauge(f"raykd_student_{name}", meaning, tag_keys=("job",))
            gauge.set(lately[name], tags={"job": job.name})


_on_cpu = ray.remote(max_retries=0)(run_training)
# A process that has used one GPU stays on it, whichever Ray gives it next: with a GPU each job has its own.
_on_gpu = ray.remote(max_retries=0, max_calls=1)(run_training)


def run_trainings(
    trainings: Sequence[Training],
    settings: RayConfig,
    on_event: Callable[[Job, Event], None],
    check: Callable[[], None] = lambda: None,
    precompute_missing: Callable[[], None] | None = None,
    busy: Callable[[], bool] = lambda: False,
) -> dict[str, UserError]:
    """Run all, as many at once as the cluster has room for. Returns what failed, by fingerprint.

    Ray queues what has no room yet. Where a process dies its job is started again and goes on from its
    checkpoint, `ray.max_retries` times; so it does when logits are missing that nobody computes, after
    `precompute_missing`. `check` is called between events and may raise: then all are stopped. Those that still wait
    for resources fail once nothing of this command has held any for ray.timeout_s; busy: whether its teachers do.
    """
    stop = Flag(trainings[0].job.store, "stop")
    running = {_start(training, settings, stop): (training, 0) for training in trainings}
    failed: dict[str, UserError] = {}
    try:
        lacking: set[Any] = set()  # streams that ended for want of logits
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
                    remove_orphans()  # an earlier try may hold what this one waits for
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
                    if training.resources.workers == 1 or not isinstance(event, Started | Warned):
                        begun.add(stream)
                    on_event(job, event)
                    if isinstance(event, LogitsMissing):
                        lacking.add(stream)
                    continue
                except StopIteration:
                    if stream in lacking:
                        if precompute_missing is None or tries >= settings.max_retries:
                            failed[job.fingerprint] = TrainingError(
                                f"{job.name}: logits that it needs are missing in {job.logits} again and again. "
                                f"See what is wrong with the store: raykd logits verify {job.logits}"
                            )
                        else:
                            precompute_missing()  # its place is free meanwhile
                            running[_start(training, settings, stop)] = (training, tries + 1)
                except (WorkerCrashedError, NodeDiedError, OutOfMemoryError, RayActorError) as error:
                    log.warning("%s: its process died (%s)", job.name, type(error).__name__)
                    if tries < settings.max_retries:
                        on_event(job, Restarted(tries + 1))
                        running[_start(training, settings, stop)] = (training, tries + 1)
                    else:
                        failed[job.fingerprint] = TrainingError(
                            f"{job.name}: its process died {tries + 1} times. If it is memory, lower "
                            f"training.batch_size or raise training.accumulation; else see Ray's logs"
                        )
                except RayTaskError as error:
                    cause = error.cause
                    known = isinstance(cause, UserError)
                    failed[job.fingerprint] = cause if known else TrainingError(f"{job.name}: {cause_of(error)}")
                    log.debug("%s failed", job.name, exc_info=error)
                except RayError as error:
                    failed[job.fingerprint] = TrainingError(f"{job.name}: {cause_of(error)}")
                if job.fingerprint in failed:
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
    """Give what runs the time to write a checkpoint; then it is over, also for what has not begun."""
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
    """Several workers are held by Ray Train itself: what starts it holds nothing, or they might wait for that.

    It stays on the driver's node, and so does Ray Train's controller: no link between them can be cut.
    """
    resources = training.resources
    alone = resources.workers == 1
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = resources.options() if alone else {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": here}
    return (_on_gpu if alone and resources.num_gpus else _on_cpu).options(**options).remote(training, settings, stop)
