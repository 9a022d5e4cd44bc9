"""The teachers at work: their replicas, placed, fed with blocks, watched, replaced, and let go when all is stored.

A thread of the driver. Nobody waits for it without a limit: what goes wrong ends in `TeacherPool.check`.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from raykd.cluster.flags import Flag
from raykd.cluster.placement import fits
from raykd.cluster.resources import Resources
from raykd.cluster.room import RoomWait
from raykd.common.errors import TrainingError, UserError
from raykd.config.schema import Config, TeacherConfig
from raykd.logits import LogitStore, TeacherLogits
from raykd.models.loading import default_dtype
from raykd.teachers.blocks import TeacherWork, missing_blocks
from raykd.teachers.replica import Progress
from raykd.teachers.replicas import ReplicaGroup

log = logging.getLogger(__name__)
# A student maps every block of its teachers, and Linux gives a process 65,530 maps; each is also a file to list.
MOST_BLOCKS = 16384
_CLOSE_SECONDS = 120.0  # it takes one, unless Ray has gone
_LOOK_SECONDS = 0.5  # how often what gives no sign by itself is looked at: hangs, idle resources, complaints


class TeacherPool:
    """`start`, then `check` now and then, `wait` for the store to be complete, `close`.

    filling: up while missing blocks are being computed; a student waits as long as it is.
    """

    def __init__(
        self,
        teacher_works: Sequence[TeacherWork],
        store: LogitStore,
        config: Config,
        gpus: float,
        on_progress: Callable[[Progress], None],
        directory: Any = None,
    ) -> None:
        """directory: the actor that tells students of live replicas; without one the pool ends with its work."""
        self.teacher_works, self.store, self.config, self.gpus = teacher_works, store, config, gpus
        self.directory, self.on_progress = directory, on_progress
        self.filling = Flag(config.store, "filling", every=0.2)
        self.closed, self.filled = threading.Event(), threading.Event()
        self.make_way = threading.Event()  # set while a training waits for resources: extra replicas go
        self.error: UserError | None = None
        self.crews: list[ReplicaGroup] = []
        rows = block_rows(teacher_works, config.logits.block_rows)
        known: dict[str, ReplicaGroup] = {}
        for teacher_work in teacher_works:
            key = teacher_work.served.key
            if key.fingerprint in known:  # the same model twice: one crew speaks for both
                log.info(
                    "teacher %s is the same as %s: they share their actors",
                    teacher_work.config.name,
                    known[key.fingerprint].name,
                )
                continue
            stored = TeacherLogits(store, key)
            blocks = missing_blocks(teacher_work, stored, rows)
            known[key.fingerprint] = ReplicaGroup(teacher_work, blocks, store, config, gpus, on_progress, stored.blocks)
            self.crews.append(known[key.fingerprint])
        self.turns = self._plan()
        self._thread = threading.Thread(target=self._run, name="teacher-pool", daemon=True)

    @property
    def idle(self) -> bool:
        """Nothing to compute and nobody to serve."""
        return self.directory is None and not any(crew.blocks for crew in self.crews)

    def _plan(self) -> list[list[ReplicaGroup]]:
        """Who works at the same time: as many teachers as the cluster has room for, the others after them."""
        turns: list[list[ReplicaGroup]] = []
        for crew in self.crews:
            if not crew.blocks and self.directory is None:
                continue
            if turns and fits([r for other in (*turns[-1], crew) for r in other.wanted]):
                turns[-1].append(crew)
            else:
                turns.append([crew])
        return turns

    def beside(self, student: Resources) -> bool:
        """Whether every teacher with work and a student have room at once; if not, the fill comes first."""
        working = [crew for crew in self.crews if crew.blocks]
        return len(self.turns) <= 1 and fits([student, *(r for crew in working for r in crew.wanted)])

    @property
    def progress(self) -> list[Progress]:
        """Of each teacher, what was refilled among it."""
        return [crew.progress for crew in self.crews]

    def start(self) -> None:
        if self.idle:
            self.filled.set()
        else:
            self.filling.up()
            self._thread.start()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.error:
            raise self.error

    def wait(self) -> None:
        """Until everything is stored. Raises UserError with the teacher's name."""
        while not self.filled.wait(0.1):
            self.check()
        self.check()

    def ready(self) -> None:
        """Until every teacher of the first turn has an actor (so that students cannot take their places)."""
        while self._thread.is_alive() and not all(crew.placed or crew.done for crew in self.turns[0]):
            if self.filled.wait(0.05):
                break
        self.check()

    def refill(self) -> None:
        """Blocks that a student missed after the fill (damaged, or removed): compute what the store lacks now.

        Raises UserError if they cannot be had: no room for a teacher within ray.timeout_s, or what `check` raises.
        """
        if self._thread.is_alive():
            return  # it is being filled, and the student waits for it
        log.warning("logits are missing after the fill: the teachers are asked for them again")
        again = TeacherPool(self.teacher_works, self.store, self.config, self.gpus, self.on_progress)
        try:
            again.start()
            again.wait()
        finally:
            again.close()
            for crew, more in zip(self.crews, again.crews, strict=True):
                crew.add(more)

    def close(self) -> None:
        """Let the actors go, also in the middle of their work."""
        self.closed.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                log.error("Ray does not answer: the teachers' actors end with this command")

    def _run(self) -> None:
        try:
            for turn in self.turns:
                self._work(turn)
        except UserError as error:
            self.error = error
        except Exception as error:  # told by `check`, in the driver's own thread
            self.error = TrainingError(f"the teacher pool failed: {type(error).__name__}: {error}")
            self.error.__cause__ = error
        finally:
            self.filling.down()
            self.filled.set()

    def _work(self, turn: list[ReplicaGroup]) -> None:
        """Drive some crews until their blocks are stored; with a directory, until the pool is closed."""
        looked = 0.0
        try:
            for crew in turn:
                crew.reserve(self.closed.is_set)
            while not self.closed.is_set():
                at_work = [crew for crew in turn if not crew.done]
                if not at_work and self.directory is None:
                    return
                if not at_work:  # live: what is to be stored is stored, and the actors stay
                    self.filling.down()
                    self.filled.set()
                for crew in turn:
                    if self.make_way.is_set():
                        crew.stop_extra()
                    crew.keep_up(serving=self.directory is not None)
                refs = {ref: crew for crew in turn for ref in crew.awaited()}
                ready, _ = ray.wait(list(refs), num_returns=1, timeout=_LOOK_SECONDS)
                for ref in ready:
                    refs[ref].hear(ref)
                if time.monotonic() - looked > _LOOK_SECONDS:
                    looked = time.monotonic()
                    for crew in turn:
                        crew.look(may_grow=not self.make_way.is_set())
                        if self.directory is not None:
                            crew.announce(self.directory)
                for crew in at_work:
                    if crew.done and self.directory is None:
                        crew.release()  # its places are free for others at once
        finally:
            for crew in turn:
                crew.release()


def block_rows(teacher_works: Sequence[TeacherWork], least: int) -> int:
    """Rows a block: as the config says, or more where that would make more blocks than a student can map."""
    rows = (
        sum(len(encoded.open()) for _, encoded in teacher_works[0].splits.values()) * len(teacher_works)
        if teacher_works
        else 0
    )
    found = max(least, math.ceil(rows / MOST_BLOCKS))
    if found > least:
        log.info("blocks of %d rows instead of logits.block_rows = %d: there would be too many files", found, least)
    return found


def compute_dtype(config: Config, teacher: TeacherConfig, gpus: float) -> str:
    """What a teacher computes in. `auto` is bf16 where the GPU that it will get has it; the driver may have none."""
    needs, setting = Resources.of(teacher, gpus), config.logits.dtype
    if setting != "auto" or not needs.num_gpus:
        return "float32" if setting == "auto" else setting
    found, room = _dtype_here.options(**needs.options()).remote(), RoomWait(config.ray.timeout_s)
    while not ray.wait([found], timeout=1)[0]:
        key = f"teachers.{teacher.name}"
        if text := room.look(f"teacher {teacher.name}", str(needs), f"{key}.num_cpus, {key}.num_gpus, logits.dtype"):
            log.info(text)
    return ray.get(found)


@ray.remote
def _dtype_here() -> str:
    return default_dtype("auto")
