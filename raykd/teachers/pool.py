"""Runs the teachers: places their replicas, assigns blocks, replaces lost ones, and stops them when all is stored.

A thread of the driver. Every wait has a limit, and `TeacherPool.check` raises its errors in the caller's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raykd.cluster.flags import Flag
from raykd.cluster.placement import fits
from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError, UserError
from raykd.common.late import Late
from raykd.config.schema import Config
from raykd.logits import LogitStore, TeacherLogits
from raykd.teachers.blocks import TeacherWork, block_rows, missing_blocks
from raykd.teachers.replica import Progress
from raykd.teachers.replicas import ReplicaGroup

if TYPE_CHECKING:
    import ray
else:
    ray = Late("ray")


log = logging.getLogger(__name__)
_CLOSE_SECONDS = 120.0  # closing takes about one second, unless Ray is gone
_POLL_SECONDS = 0.5  # how often to check what sends no event: hangs, idle resources, unresponsive replicas


class TeacherPool:
    """Call `start`, then `check` regularly, `wait` until the store is complete, and `close`.

    precompute_running: a flag that is up while missing blocks are being computed; students wait while it is up.
    precompute_done: set when the store is complete, and after an error.
    trainings_run: set while trainings hold resources for which a teacher waits here; that time does not count.
    logits: of each teacher, by its key's fingerprint, with no block open.
    make_way: set while a training waits for resources, to stop the extra replicas (replicas: auto).
    """

    def __init__(
        self,
        teacher_works: Sequence[TeacherWork],
        store: LogitStore,
        config: Config,
        gpus: float,
        on_progress: Callable[[Progress], None],
        directory: Any = None,
        start_ray: Callable[[], None] = lambda: None,
    ) -> None:
        """Find the missing blocks and plan the rounds; nothing is started.

        gpus: of the whole cluster, from which "auto" resources follow.
        on_progress: called in the pool's thread.
        directory: the actor in which students find live replicas; without one, the pool stops when all is stored.
        start_ray: called here if there is anything to compute or to serve.
        """
        self.teacher_works, self.store, self.config, self.gpus = teacher_works, store, config, gpus
        self.directory, self.on_progress = directory, on_progress
        self.precompute_running = Flag(config.store, "precompute", every=0.2)
        self.closed, self.precompute_done = threading.Event(), threading.Event()
        self.trainings_run, self.make_way = threading.Event(), threading.Event()
        self.error: UserError | None = None
        self.replica_groups: list[ReplicaGroup] = []
        self.logits: dict[str, TeacherLogits] = {}
        known: dict[str, ReplicaGroup] = {}
        for teacher_work in teacher_works:
            key = teacher_work.served.key
            if key.fingerprint in known:  # the same model twice: one group of replicas serves both
                log.info(
                    "teacher %s is the same as %s: they share their actors",
                    teacher_work.config.name,
                    known[key.fingerprint].name,
                )
                continue
            stored = self.logits[key.fingerprint] = TeacherLogits(store, key)
            on_gpus = Resources.of(teacher_work.config, gpus).num_gpus > 0
            rows = block_rows(teacher_work, config.logits.block_rows, on_gpus, len(teacher_works))
            blocks = missing_blocks(teacher_work, stored, rows)
            known[key.fingerprint] = ReplicaGroup(teacher_work, blocks, store, config, gpus, on_progress, stored.blocks)
            self.replica_groups.append(known[key.fingerprint])
            stored.blocks.clear()  # a process can map only so many files
        if not self.idle:
            start_ray()
        self._again: TeacherPool | None = None  # computes what was found missing later
        self.rounds = self._plan()
        self._thread = threading.Thread(target=self._run, name="teacher-pool", daemon=True)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and no student to serve."""
        return self.directory is None and not any(group.blocks for group in self.replica_groups)

    def _plan(self) -> list[list[ReplicaGroup]]:
        """Rounds of teachers that run at the same time: as many in each as the cluster has room for."""
        rounds: list[list[ReplicaGroup]] = []
        for group in self.replica_groups:
            if not group.blocks and self.directory is None:
                continue
            if rounds and fits([r for other in (*rounds[-1], group) for r in other.wanted]):
                rounds[-1].append(group)
            else:
                rounds.append([group])
        return rounds

    def overlap(self, student: Resources) -> bool:
        """Whether all teachers with work fit next to a student; if not, precompute before the students start."""
        working = [group for group in self.replica_groups if group.blocks]
        return len(self.rounds) <= 1 and fits([student, *(r for group in working for r in group.wanted)])

    @property
    def progress(self) -> list[Progress]:
        """Of each teacher, including blocks that were recomputed later."""
        return [group.progress for group in self.replica_groups]

    def start(self) -> None:
        if self.idle:
            self.precompute_done.set()
        else:
            self.precompute_running.up()
            self._thread.start()

    def check(self) -> None:
        """Raise the error that stopped the pool, if there is one."""
        if self.error:
            raise self.error

    def wait(self) -> None:
        """Wait until everything is stored. Raises UserError with the teacher's name."""
        while not self.precompute_done.wait(0.1):
            self.check()
        self.check()

    def ready(self) -> None:
        """Wait until the first round's teachers have their resources, so that students cannot take them."""
        while self._thread.is_alive() and not all(group.placed or group.done for group in self.rounds[0]):
            if self.precompute_done.wait(0.05):
                break
        self.check()

    def recomputed(self, trainings_run: bool) -> bool:
        """Compute the blocks that were damaged or removed after they had been stored.

        Call it until it returns True. Raises UserError if there is no room for a teacher within ray.timeout_s, or
        whatever `check` raises.

        trainings_run: whether trainings of this command hold resources.
        """
        if self._thread.is_alive():
            return True  # they are being computed, and the student waits for them
        if self._again is None:
            log.warning("logits that were stored are missing: the teachers compute them again")
            self._again = TeacherPool(self.teacher_works, self.store, self.config, self.gpus, self.on_progress)
            self._again.start()
        if trainings_run:
            self._again.trainings_run.set()
        else:
            self._again.trainings_run.clear()
        if not self._again.precompute_done.is_set():
            return False
        again = self._end_again()
        again.check()
        return True

    def _end_again(self) -> TeacherPool:
        """Close the pool that computes what was missing, and count its work."""
        assert self._again is not None
        again, self._again = self._again, None
        again.close()
        for group, more in zip(self.replica_groups, again.replica_groups, strict=True):
            group.counts.add(more.counts)
        return again

    def close(self) -> None:
        """Stop the actors, even in the middle of their work."""
        if self._again is not None:
            self._end_again()
        self.closed.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                log.error("Ray does not answer; the teachers' actors will stop when this command exits")

    def _run(self) -> None:
        try:
            rounds, waiting = self.rounds, list[ReplicaGroup]()
            if self.takes_over:
                rounds, waiting = rounds[:1], [group for groups in rounds[1:] for group in groups]
            for groups in rounds:
                self._work([*groups], waiting)
        except UserError as error:
            self.error = error
        except Exception as error:  # `check` raises it in the caller's thread
            self.error = TrainingError(f"the teacher pool failed: {type(error).__name__}: {error}")
            self.error.__cause__ = error
        try:
            try:
                self.precompute_running.down()
            finally:
                self._note_costs()
        except Exception as error:  # of the file system, or of the store
            if self.error is None:
                self.error = TrainingError(f"the teacher pool failed at its end: {type(error).__name__}: {error}")
                self.error.__cause__ = error
        finally:
            self.precompute_done.set()

    def _note_costs(self) -> None:
        """Keep what computing took with the logits, for later commands that find all of them in the store."""
        for group in self.replica_groups:
            if group.counts.computed:
                logits = self.logits[group.teacher_work.served.key.fingerprint]
                logits.note_cost(group.counts.computed, group.counts.busy_seconds)

    @property
    def takes_over(self) -> bool:
        """Whether each group that waits can take the places of any other, so that there need be no rounds.

        Groups of different sizes keep their rounds: the end of one can make room for several of the next.
        """
        groups = [group for groups in self.rounds for group in groups]
        return self.directory is None and all(group.can_follow(groups[0]) for group in groups)

    def _work(self, groups: list[ReplicaGroup], waiting: list[ReplicaGroup]) -> None:
        """Run one round until its blocks are stored; with a directory, until the pool is closed.

        waiting: groups that take the places of those of the round as these finish.
        """
        checked = 0.0
        try:
            for group in groups:
                group.reserve(self.closed.is_set, self.trainings_run.is_set)
            while not self.closed.is_set():
                at_work = [group for group in groups if not group.done]
                if not at_work and self.directory is None:
                    return
                if not at_work:  # live: all blocks are stored, and the actors keep serving
                    self.precompute_running.down()
                    self.precompute_done.set()
                for group in groups:
                    if self.make_way.is_set():
                        group.stop_extra()
                    group.assign_blocks(serving=self.directory is not None)
                refs = {ref: group for group in groups for ref in group.pending_refs()}
                if ray.wait(list(refs), num_returns=1, timeout=_POLL_SECONDS)[0]:
                    ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)  # all that are ready by now
                else:
                    ready = []
                for ref in ready:
                    refs[ref].on_ready(ref)
                if time.monotonic() - checked > _POLL_SECONDS:
                    checked = time.monotonic()
                    for group in groups:
                        group.check_replicas(may_grow=not self.make_way.is_set())
                        if self.directory is not None:
                            group.publish(self.directory)
                for group in at_work:
                    if group.done and self.directory is None:
                        if waiting:
                            groups.append(waiting.pop(0))
                            groups[-1].follow(group)
                        group.release()  # frees its places for other work at once
        finally:
            for group in groups:
                group.release()
