"""Runs trainings in processes of a cluster, and starts those again that die."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raykd.cluster.causes import DEATHS, cause_of
from raykd.cluster.flags import Flag
from raykd.cluster.placement import remove_orphans
from raykd.cluster.room import RoomWait
from raykd.common.device_errors import gpu_failed, gpu_is_full
from raykd.common.errors import TrainingError, UserError
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.training.access import Training
from raykd.training.events import Event, Failed, Restarted, Stopping
from raykd.training.tries import Try

log = logging.getLogger(__name__)
_STOP_SECONDS = 20.0  # Kubernetes kills 30 s after its SIGTERM


def run_trainings(
    trainings: Sequence[Training],
    settings: RayConfig,
    on_event: Callable[[Job, Event], None],
    check: Callable[[], None] = lambda: None,
    recomputed: Callable[[bool], bool] | None = None,
    busy: Callable[[], bool] = lambda: False,
) -> dict[str, UserError]:
    """Run all trainings, as many at once as the cluster has room for. Returns the failed ones' errors, by fingerprint.

    Ray queues those that have no room yet; they fail once nothing of this command has held resources for
    ray.timeout_s. If a training's process dies, it is started again and resumes from its checkpoint, up to
    ray.max_retries times, as it is after an error of its GPU; also if the memory of a GPU ends that it shares by a
    measured number, with a larger share. On GPUs, a training that waits takes over the process of one that is done.

    on_event: called with each event.
    check: called between events; if it raises, all trainings are stopped.
    recomputed: see `TeacherPool.recomputed`. Called again and again from when a training lacks logits that nobody is
        computing. Until it returns True, this training leaves its resources to the teachers, and so do all of one
        worker that wait for theirs. None: such a training fails.
    busy: whether this command's teachers hold resources.
    """
    launch = _Launch(settings, Flag(trainings[0].job.store, "stop"), on_event, recomputed)
    try:
        for training in trainings:
            launch.start(Try(training))
        launch.run(check, busy)
    except BaseException:  # SIGTERM and Ctrl-C among them
        launch.stop_all()
        raise
    return launch.failed


class _Launch:
    """The trainings of one call.

    running: the tries that have been started, by their streams of events.
    held: those that wait for logits to be computed again.
    failed: errors, by fingerprint.
    """

    def __init__(
        self,
        settings: RayConfig,
        stop: Flag,
        on_event: Callable[[Job, Event], None],
        recomputed: Callable[[bool], bool] | None,
    ) -> None:
        self.settings, self.stop, self.on_event, self.recomputed = settings, stop, on_event, recomputed
        self.running: dict[Any, Try] = {}
        self.held: list[Try] = []
        self.failed: dict[str, UserError] = {}
        self._restarts = Counter[str]()  # by fingerprint

    def start(self, one: Try) -> None:
        self.running[one.start(self.settings, self.stop)] = one

    def run(self, check: Callable[[], None], busy: Callable[[], bool]) -> None:
        """Until all have ended."""
        room = RoomWait(self.settings.timeout_s)
        while self.running or self.held:
            check()
            at_work = any(one.begun for one in self.running.values())
            if self.held and self.recomputed and self.recomputed(at_work):
                held, self.held = self.held, []
                for one in held:
                    self.start(one)
            if self.held or busy() or at_work:
                room.reset()
            elif not self._have_room(room):
                return
            if not self.running:
                time.sleep(0.1)
                continue
            for stream in ray.wait(list(self.running), num_returns=1, timeout=1)[0]:
                self._read(stream)

    def _have_room(self, room: RoomWait) -> bool:
        """Whether to wait on for it. If not, all have failed."""
        waits = [one.training for one in self.running.values()]
        try:
            if text := room.training(_names(waits), waits[0].job.key, waits[0].resources):
                log.info(text)
                remove_orphans()  # an earlier try may hold what this one needs
        except TrainingError as error:
            for stream, one in self.running.items():
                self.failed[one.training.job.fingerprint] = error
                self.on_event(one.training.job, Failed(str(error)))
                one.cancel(stream)
            return False
        return True

    def _read(self, stream: Any) -> None:
        """One event, or the end."""
        one = self.running[stream]
        job = one.training.job
        try:
            event = ray.get(next(stream))
        except (StopIteration, RayError) as error:
            del self.running[stream]
            after = _after(one, error, self.settings.max_retries, self.recomputed is not None)
        else:
            one.note(event)
            self.on_event(job, event)
            return
        if after is None:
            self._pass_on(one)
            return
        one.release()
        if isinstance(after, UserError):
            self.failed[job.fingerprint] = after
            if one.training.resources.workers > 1:
                remove_orphans()  # what its last try has reserved
            self.on_event(job, Failed(str(after)))
        elif after.why:
            self._restarts[job.fingerprint] += 1
            self.on_event(job, Restarted(self._restarts[job.fingerprint], after.why))
            if self.held and after.training.resources.workers == 1:
                self.held.append(after)
            else:
                self.start(after)
        else:
            self.held += [after, *self._withdraw()]

    def _pass_on(self, done: Try) -> None:
        """Give the process of a training that is done to the first one that can take it over, or end it."""
        for stream, one in self._waiting():
            if one.can_take_over(done):
                del self.running[stream]
                one.cancel(stream)
                one.take_over(done)
                self.start(one)
                return
        done.release()

    def _withdraw(self) -> list[Try]:
        """Take back what waits for resources. For several workers Ray Train has asked for theirs, so these stay."""
        waiting = [(stream, one) for stream, one in self._waiting() if one.training.resources.workers == 1]
        for stream, one in waiting:
            del self.running[stream]
            one.cancel(stream)
        return [one for _, one in waiting]

    def _waiting(self) -> list[tuple[Any, Try]]:
        """The tries that have not begun, with their streams."""
        return [
            (stream, one)
            for stream, one in self.running.items()
            if not one.begun and not ray.wait([stream], timeout=0)[0]  # unless an event of it has not been read yet
        ]

    def stop_all(self) -> None:
        """Give the running trainings time to write a checkpoint, then cancel all, also those that have not begun."""
        self.stop.up()
        for one in (*self.running.values(), *self.held):
            self.on_event(one.training.job, Stopping())
        limit = time.monotonic() + _STOP_SECONDS
        try:
            for stream, one in self._waiting():
                if one.process is not None:  # it would import for seconds, only to stop
                    del self.running[stream]
                    one.cancel(stream)
            while self.running and time.monotonic() < limit:
                for stream in ray.wait(list(self.running), num_returns=1, timeout=1)[0]:
                    job = self.running[stream].training.job
                    try:
                        self.on_event(job, ray.get(next(stream)))
                    except StopIteration:
                        self.running.pop(stream).release()
                    except RayError as error:
                        self.running.pop(stream).release()
                        log.warning("%s: wrote no checkpoint at the end (%s)", job.name, cause_of(error))
        finally:
            for stream, one in self.running.items():
                one.cancel(stream)
            self.stop.down()


def _after(ended: Try, error: StopIteration | RayError, retries: int, can_precompute: bool) -> Try | UserError | None:
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
    if isinstance(error, DEATHS) and not getattr(error, "actor_init_failed", False):
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
    if ended.reused and gpu_is_full(cause):  # the training before it can have left memory in pieces
        return Try(training, ended.before, "out of GPU memory in a process that had run another training", fresh=True)
    if resources.measured and gpu_is_full(cause):
        fewer = replace(training, resources=resources.halved)
        why = f"out of GPU memory with {resources.per_gpu} on each GPU, now {fewer.resources.per_gpu}"
        return ended.next(fewer, why)
    log.debug("%s failed", job.name, exc_info=error)
    return cause if isinstance(cause, UserError) else TrainingError(f"{job.name}: {cause_of(error)}")


def _names(trainings: Sequence[Training]) -> str:
    first = trainings[0].job.name
    return first if len(trainings) == 1 else f"{first} and {len(trainings) - 1} more"
