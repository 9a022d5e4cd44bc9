"""The process of one training: one worker trains in it, several are a Ray Train run that it starts."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from filelock import FileLock
from ray.util.metrics import Gauge

from raykd.cluster.flags import Flag
from raykd.common.atomic import quarantine
from raykd.common.environment import begin_task
from raykd.common.errors import DivergedError
from raykd.common.output_files import EVENTS, LOCK, RESULT
from raykd.common.ranks import DistContext, local_device
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.training.access import Training
from raykd.training.events import (
    AlreadyTrained,
    Done,
    Evaluated,
    Event,
    Started,
    Stored,
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
    lock = FileLock(job.folder / LOCK)
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
        events: Any = (  # generators
            train(job, DistContext(device=local_device(resources.num_gpus)), stop, training.access, resources.gpus)
            if alone
            else train_distributed(job, resources, training.access, settings, stop, limited)
        )
        try:
            with closing(events):  # several workers have ended before the lock is free
                for event in events:
                    if isinstance(event, Stored):
                        with (job.folder / EVENTS).open("a") as file:
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
        finally:
            if alone and job.training.compile:  # torch compiles a function only so many times in one process
                torch.compiler.reset()


def _export(job: Job, event: Evaluated) -> None:
    """Set the metrics that Ray exports for a student."""
    _, lately = event.history[-1] if event.history else (0, {})  # evaluations can be closer together than logged steps
    for name, meaning in _METRICS.items():
        if name in lately:
            gauge = Gauge(f"raykd_student_{name}", meaning, tag_keys=("job",))
            gauge.set(lately[name], tags={"job": job.name})
