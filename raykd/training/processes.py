"""Trainings on Ray: one worker trains inside a reused process, several are a Ray Train run."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from filelock import FileLock
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

from raykd.cluster.flags import AnyFlag, Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.resources import Resources
from raykd.common.atomic import set_aside
from raykd.common.environment import set_environment
from raykd.common.errors import DivergedError, TrainingError, UserError
from raykd.common.ranks import DistContext, local_device
from raykd.config.schema import RayConfig
from raykd.plan.job import RESULT, Job
from raykd.training.loader import TeacherAccess
from raykd.training.log_events import with_warnings
from raykd.training.loop import Event, train

log = logging.getLogger(__name__)
_METRICS = {
    "waited_share": "share of the time that a student waits for logits",
    "requests_in_flight": "live requests that a student has under way",
}
_ORPHANS_SECONDS = 5.0
_STOP_SECONDS = 20.0  # Kubernetes kills 30 s after its SIGTERM
TRAIN_CONTROLLER_CPUS = 0.01  # its workers hold the real ones; 0 is an error in Ray


@dataclass(frozen=True)
class Training:
    job: Job
    resources: Resources
    serving: TeacherAccess = field(default_factory=TeacherAccess)


def run_training(training: Training, settings: RayConfig, stop: Flag) -> Iterator[Event]:
    """One training in a Ray worker process. On CPUs Ray reuses it: importing torch costs seconds, a job does not.

    Yields "started", "found" if another command was faster, "warning" for what is logged, and the events of
    `raykd.training.loop.train`; keeps the history in `events.jsonl`.
    """
    yield from with_warnings(_run_training(training, settings, stop))


def _run_training(training: Training, settings: RayConfig, stop: Flag) -> Iterator[Event]:
    set_environment()
    job, resources = training.job, training.resources
    torch.set_num_threads(max(1, int(resources.num_cpus)))
    job.folder.mkdir(parents=True, exist_ok=True)
    yield {"event": "started", "steps": job.steps, "pid": os.getpid()}
    with FileLock(job.folder / "lock"):  # another command may train the same job; its end frees the lock, also by death
        if (result := job.folder / RESULT).exists() and (damage := job.damage()):
            set_aside(result, damage)
        if job.done:
            yield {"event": "found"}
            return
        result.unlink(missing_ok=True)  # its models were dropped: it counts when they are back
        alone = resources.workers == 1
        events = (
            train(job, DistContext(device=local_device(resources.num_gpus)), stop, training.serving)
            if alone
            else _train_distributed(training, settings, stop)
        )
        try:
            for event in events:
                if event["event"] in ("evaluation", "generation", "stopped", "missing"):
                    with (job.folder / "events.jsonl").open("a") as file:
                        file.write("\n" + json.dumps(event))  # the line before may be unfinished, if its process died
                        file.flush()
                        os.fsync(file.fileno())
                if event["event"] == "evaluation":
                    _export(job, event)
                elif event["event"] == "done" and not job.keep:
                    job.delete_models()
                yield event
        except DivergedError:  # nothing can resume from its checkpoints; a born-again's own logits are among them
            job.delete_models()
            raise


def _export(job: Job, event: Event) -> None:
    """What Ray's metrics port shows of a student."""
    _, lately = event["history"][-1] if event["history"] else (0, {})  # evaluations may be closer than logged steps
    for name, meaning in _METRICS.items():
        if name in lately:
            gauge = Gauge(f"raykd_student_{name}", meaning, tag_keys=("job",))
            gauge.set(lately[name], tags={"job": job.name})


_on_cpu = ray.remote(max_retries=0)(run_training)
# A process that has used one GPU stays on it, whichever Ray gives it next: with a GPU each job has its own.
_on_gpu = ray.remote(max_retries=0, max_calls=1)(run_training)


def _train_distributed(training: Training, settings: RayConfig, stop: Flag) -> Iterator[Event]:
    """A Ray Train run. Its first worker's events come through a queue while `fit` waits in a thread."""
    from queue import Empty

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    job, resources = training.job, training.resources
    cut = Flag(job.store, "cut")  # this training alone
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On this node: whom a cut link parts from it waits for minutes, or loses an event.
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": job,
            "queue": queue,
            "threads": max(1, int(resources.num_cpus)),
            "stop": AnyFlag((stop, cut)),
            "serving": training.serving,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.num_gpus > 0,
            resources_per_worker=resources.bundle(),
            label_selector=dict(resources.node_labels) or None,
        ),
        # NCCL, which Ray Train takes for GPUs, refuses two workers on one.
        torch_config=TorchConfig(backend="gloo") if 0 < resources.num_gpus < 1 else None,
        run_config=RunConfig(
            name=f"{job.fingerprint[:12]}",
            storage_path=str(job.folder / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.max_retries),
        ),
    )
    failure: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    begun, look = False, 0.0
    try:
        while True:
            alive = thread.is_alive()  # before the look into the queue, so that nothing is missed
            try:
                event = queue.get(timeout=0.5)
                begun = True
            except Empty:
                if not alive:
                    break
                if not begun and time.monotonic() > look:  # an earlier try may hold what this one waits for
                    remove_orphans()
                    look = time.monotonic() + _ORPHANS_SECONDS
                continue
            if event["event"] == "error":
                raise event["error"]
            yield event
    except (GeneratorExit, RayActorError):  # nobody hears the rest: its workers must not go on
        cut.up()
        thread.join(_STOP_SECONDS)
        raise
    finally:
        cut.down()
        queue.shutdown()
    if failure:
        raise TrainingError(f"{job.name}: {cause_of(failure[0])}")


def _train_worker(given: dict[str, Any]) -> None:
    """One of several workers; runs in Ray Train's process. Goes on from the job's own checkpoint."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(given["threads"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    host = torch.distributed.new_group(backend="gloo") if device.type == "cuda" else None
    ranks = DistContext(context.get_world_rank(), context.get_world_size(), device, host)
    try:
        for event in with_warnings(train(given["job"], ranks, given["stop"], given["serving"])):
            if ranks.is_main:
                given["queue"].put(event)
    except UserError as error:  # Ray Train would try it again, to the same end
        given["queue"].put({"event": "error", "error": error})


def run_trainings(
    trainings: Sequence[Training],
    settings: RayConfig,
    on_event: Callable[[Job, Event], None],
    check: Callable[[], None] = lambda: None,
    refill: Callable[[], None] | None = None,
) -> dict[str, UserError]:
    """Run all, as many at once as the cluster has room for. Returns what failed, by fingerprint.

    Ray queues what has no room yet. Where a process dies its job is started again and goes on from its
    checkpoint, `ray.max_retries` times; so it does when logits are missing that nobody computes, after
    `refill`. `check` is called between events and may raise: then all are stopped.
    """
    stop = Flag(trainings[0].job.store, "stop")
    running = {_start(training, settings, stop): (training, 0) for training in trainings}
    failed: dict[str, UserError] = {}
    try:
        lacking: set[Any] = set()  # streams that ended for want of logits
        while running:
            check()
            for stream in ray.wait(list(running), num_returns=1, timeout=1)[0]:
                training, tries = running[stream]
                job = training.job
                try:
                    event = ray.get(next(stream))
                    on_event(job, event)
                    if event["event"] == "missing":
                        lacking.add(stream)
                    continue
                except StopIteration:
                    if stream in lacking:
                        if refill is None or tries >= settings.max_retries:
                            failed[job.fingerprint] = TrainingError(
                                f"{job.name}: logits that it needs are missing in {job.logits} again and again. "
                                f"See what is wrong with the store: raykd logits verify {job.logits}"
                            )
                        else:
                            refill()  # its place is free meanwhile
                            running[_start(training, settings, stop)] = (training, tries + 1)
                except (WorkerCrashedError, NodeDiedError, OutOfMemoryError, RayActorError) as error:
                    log.warning("%s: its process died (%s)", job.name, type(error).__name__)
                    if tries < settings.max_retries:
                        on_event(job, {"event": "restarted", "tries": tries + 1})
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
                    on_event(job, {"event": "failed", "reason": str(failed[job.fingerprint])})
                del running[stream]
    except BaseException:  # SIGTERM and Ctrl-C among them
        _stop({stream: training.job for stream, (training, _) in running.items()}, stop, on_event)
        raise
    return failed


def _stop(running: dict[Any, Job], stop: Flag, on_event: Callable[[Job, Event], None]) -> None:
    """Give what runs the time to write a checkpoint; then it is over, also for what has not begun."""
    stop.up()
    for job in running.values():
        on_event(job, {"event": "stopping"})
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


def cause_of(error: BaseException) -> str:
    """The last line that says something: a Ray error's text is its whole traceback."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()] or [repr(cause)]
    return f"{type(cause).__name__}: {lines[-1].strip()}"
