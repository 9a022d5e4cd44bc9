"""One teacher's replicas and the blocks that are theirs to compute."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Counter
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raykd.cluster.placement import fits, idle
from raykd.cluster.resources import Resources
from raykd.cluster.room import RoomWait
from raykd.common.errors import TrainingError, UserError
from raykd.config.schema import Config
from raykd.logits import LogitStore
from raykd.logits.store import block_name
from raykd.teachers.actor import TeacherActor
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.replica import Block, Progress, Replica
from raykd.teachers.requests import BlockRequest

log = logging.getLogger(__name__)
_AHEAD = 2  # blocks that a replica has at hand: it never waits for the driver
_EXTRA_SECONDS = 60.0  # an extra replica that has found no place by then is given up
_LOOK_SECONDS = 0.5  # a wait for room is interrupted this often, to see whether it still makes sense
_STEADY_SECONDS = 60.0  # a live replica that has served for so long was no failed start
_DIRECTORY_SECONDS = 60.0  # it answers in milliseconds; a machine may be busy
_COUNTERS = {
    "teacher_restarts": "replicas that were replaced",
    "store_hits": "rows whose logits were in the store",
    "store_misses": "rows whose logits had to be computed",
}
_HANGS = 1  # a teacher that hangs on the same block once more than this is an error


class ReplicaGroup:
    def __init__(
        self,
        teacher_work: TeacherWork,
        blocks: Sequence[BlockRequest],
        store: LogitStore,
        config: Config,
        gpus: float,
        on_progress: Callable[[Progress], None],
        stored: Collection[str] = (),
    ) -> None:
        """blocks: to be computed. stored: names of those that were there when this was found out."""
        self.teacher_work, self.store, self.config, self.on_progress = teacher_work, store, config, on_progress
        self.name = teacher_work.config.name
        self.size = Resources.of(teacher_work.config, gpus)
        self.auto = teacher_work.config.replicas == "auto"
        self.wanted = [self.size] * (1 if teacher_work.config.replicas == "auto" else teacher_work.config.replicas)
        self.blocks = deque(Block(request) for request in blocks)
        # No row of one of these stands in another: what a replica need not look into before it computes one.
        self.disjoint = {*stored, *(block_name(b.row_ids) for b in blocks)}
        self.total = sum(len(b.request.positions) for b in self.blocks)
        self.stored = sum(len(encoded.open()) for _, encoded in teacher_work.splits.values()) - self.total
        self.rows = self.computed = self.restarts = 0
        self.deaths: dict[int | None, int] = {}  # by place, in a row: a lost node is one for each that was on it
        self.busy_seconds, self.begun, self.answered = 0.0, 0.0, 0.0
        self.replicas: list[Replica] = []
        self.group: PlacementGroup | None = None
        self.told: Any = None
        self._grow_after = 0.0  # when an extra replica may be tried again
        self._counters = {
            name: Counter(f"raykd_{name}", meaning, tag_keys=("teacher",)) for name, meaning in _COUNTERS.items()
        }
        self._count("store_hits", self.stored)

    @property
    def done(self) -> bool:
        return self.rows == self.total

    @property
    def placed(self) -> bool:
        return self.group is not None

    @property
    def per_replica(self) -> float:
        """Rows a second of one replica at work."""
        return self.computed / self.busy_seconds if self.busy_seconds else 0.0

    def reserve(self, closed: Callable[[], bool]) -> None:
        """Places for the replicas that the config asks for. They stay this crew's, also when a replica dies.

        None if the pool is closed meanwhile.
        """
        strategy = "SPREAD" if self.teacher_work.config.placement == "spread" else "PACK"
        bundles = [r.bundle() or {"CPU": 0.001} for r in self.wanted]
        labels = dict(self.size.node_labels)
        group = placement_group(bundles, strategy, bundle_label_selector=[labels] * len(bundles) if labels else None)
        room, key = RoomWait(self.config.ray.timeout_s), f"teachers.{self.name}"
        wanted = f"{len(bundles)} replica(s) of {self.size}"
        settings = ", ".join(f"{key}.{name}" for name in ("replicas", "num_cpus", "num_gpus"))
        try:
            while not group.wait(_LOOK_SECONDS):
                if closed():
                    remove_placement_group(group)
                    return
                if text := room.look(f"teacher {self.name}", wanted, settings):
                    log.info(text)
        except TrainingError:
            remove_placement_group(group)
            raise
        self.group = group

    def keep_up(self, serving: bool) -> None:
        """As many replicas as there are places and work, each with blocks at hand."""
        work = serving or bool(self.blocks) or any(r.at_hand for r in self.replicas)
        taken = {r.place for r in self.replicas}
        for place in range(len(self.wanted)):
            if work and place not in taken and (serving or len(self.replicas) < max(1, len(self.blocks))):
                self._start_replica(place)
        for replica in self.replicas:
            while replica.loaded and self.blocks and len(replica.at_hand) < _AHEAD:
                if not replica.at_hand:
                    replica.since = time.monotonic()
                block = self.blocks.popleft()
                replica.at_hand.append((replica.actor.fill.remote(block.request), block))

    def _start_replica(self, place: int | None) -> None:
        options: dict[str, Any] = self.size.options()
        if place is not None:  # the bundle says where
            options = {"num_cpus": self.size.num_cpus, "num_gpus": self.size.num_gpus}
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.group, place)
        actor = TeacherActor.options(**options).remote(  # type: ignore[attr-defined]
            self.teacher_work.served, self.store, self.disjoint, self.size.num_cpus, self.size.num_gpus
        )
        self.replicas.append(Replica(actor, place, actor.load.remote(), actor.live.remote(), time.monotonic()))

    def awaited(self) -> Iterator[Any]:
        """Everything that can happen next."""
        for replica in self.replicas:
            yield replica.life
            if not replica.loaded:
                yield replica.loading
            elif replica.at_hand:
                yield replica.at_hand[0][0]  # it works on one after the other

    def hear(self, ref: Any) -> None:
        replica = next(
            (r for r in self.replicas if ref in (r.life, r.loading) or (r.at_hand and ref == r.at_hand[0][0])), None
        )
        if replica is None:
            return  # it was let go meanwhile
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise TrainingError(f"teacher {self.name}: {type(error.cause).__name__}: {_short(error.cause)}") from error
        except RayError as error:
            self._on_replica_lost(replica, _short(error))
            return
        if ref == replica.loading:
            replica.loaded, replica.since = True, time.monotonic()
            self.begun = self.begun or replica.since
            log.debug("teacher %s: a replica is ready (process %s)", self.name, answer)
            return
        replica.at_hand.popleft()
        replica.since = self.answered = time.monotonic()
        self.deaths[replica.place] = 0
        self.rows += answer.rows
        self.computed += answer.computed
        self._count("store_misses", answer.computed)
        self._count("store_hits", answer.rows - answer.computed)
        self.busy_seconds += answer.seconds if answer.computed else 0.0
        if answer.halved:
            log.warning(
                "teacher %s: %d batch(es) did not fit into memory and were halved (logits may differ in their last "
                "bits); lower logits.batch_tokens",
                self.name,
                answer.halved,
            )
        self.on_progress(self.progress)

    def _count(self, name: str, amount: int) -> None:
        if amount:
            self._counters[name].inc(amount, tags={"teacher": self.name})

    @property
    def progress(self) -> Progress:
        took = max(0.0, self.answered - self.begun)
        return Progress(
            teacher=self.name,
            done=self.rows,
            total=self.total,
            replicas=sum(r.loaded for r in self.replicas),
            per_replica=self.per_replica,
            restarts=self.restarts,
            computed=self.computed,
            seconds=self.busy_seconds,
            took=took,
        )

    def _on_replica_lost(self, replica: Replica, cause: str, hung: bool = False) -> None:
        """Its work goes to the others; its place to a new one. TrainingError if that has happened too often."""
        self.replicas.remove(replica)
        ray.kill(replica.actor)
        if replica.place is None and not replica.loaded:  # an extra one that found no place: nothing is lost
            self._grow_after = time.monotonic() + _EXTRA_SECONDS
            return
        for _, block in reversed(replica.at_hand):
            self.blocks.appendleft(block)
        if replica.at_hand:
            first = replica.at_hand[0][1]
            first.deaths, first.hangs = first.deaths + 1, first.hangs + hung
        if self.done and replica.loaded and time.monotonic() - replica.since > _STEADY_SECONDS:
            self.deaths[replica.place] = 0  # live, without a block whose answer would say so
        self.restarts += 1
        deaths = self.deaths.get(replica.place, 0) + 1
        if replica.place is not None:  # extra ones have none, and several may go with one node
            self.deaths[replica.place] = deaths
        self._count("teacher_restarts", 1)
        log.warning("teacher %s: a replica is lost (%s); its work goes on elsewhere", self.name, cause)
        self.on_progress(self.progress)
        deaths = max(deaths, *(b.deaths for b in self.blocks), 0)
        if any(b.hangs > _HANGS for b in self.blocks):
            raise TrainingError(
                f"teacher {self.name}: no answer within logits.timeout_s = {self.config.logits.timeout_s:g} s, "
                f"{_HANGS + 1} times on the same block. Raise it, lower logits.block_rows, or look at the model"
            )
        if deaths > self.config.ray.max_retries:
            raise TrainingError(
                f"teacher {self.name}: its process died {deaths} times in a row ({cause}). "
                f"If it is memory, lower logits.batch_tokens; else check its checkpoint and Ray's logs"
            )

    def look(self, may_grow: bool) -> None:
        """Replicas that give no sign, and idle resources that could do some of the work."""
        now = time.monotonic()
        for replica in list(self.replicas):
            silent = now - replica.since
            if replica.loaded and replica.at_hand and silent > self.config.logits.timeout_s:
                self._on_replica_lost(replica, f"no answer for {silent:.0f} s", hung=True)
            elif not replica.loaded and replica.place is None and silent > _EXTRA_SECONDS:
                self._on_replica_lost(replica, "no place was found")
            elif not any(r.loaded for r in self.replicas) and silent > self.config.ray.timeout_s:
                raise TrainingError(
                    f"teacher {self.name}: it was not loaded within ray.timeout_s = {self.config.ray.timeout_s:g} s "
                    f"({self.size} asked for). Look at the cluster, or raise it"
                )
        waiting = self.replicas and not any(r.loaded for r in self.replicas)
        if waiting and not self.config.ray.wait_s and not fits([self.size]):
            raise TrainingError(
                f"teacher {self.name}: the node that it was on is gone, and no other has room for it ({self.size}). "
                f"Start the same command again when there is one, or set ray.wait_s"
            )
        if not self.auto:
            return
        for replica in [r for r in self.replicas if r.place is None and r.loaded and not r.at_hand and not self.blocks]:
            self.replicas.remove(replica)
            ray.kill(replica.actor)
        loading = sum(not r.loaded for r in self.replicas)
        may_grow = may_grow and now > self._grow_after and not loading
        if may_grow and len(self.blocks) > len(self.replicas) and idle(self.size):
            self._start_replica(None)

    def stop_extra(self) -> None:
        """What they have at hand is computed by those who stay."""
        for replica in [r for r in self.replicas if r.place is None]:
            self.replicas.remove(replica)
            ray.kill(replica.actor)
            self.blocks.extendleft(block for _, block in reversed(replica.at_hand))

    def complain(self, actor_id: str) -> None:
        """A student has had no answer from this replica for too long."""
        for replica in [r for r in self.replicas if r.actor._actor_id.hex() == actor_id]:
            self._on_replica_lost(replica, "a student waited for an answer in vain", hung=True)

    def announce(self, directory: Any) -> None:
        """Tell students who serves, if that has changed; hear who does not answer."""
        serving = [r.actor for r in self.replicas if r.loaded]
        ids = [actor._actor_id.hex() for actor in serving]
        if ids != self.told:
            self.told = ids
            ray.get(directory.put.remote(self.teacher_work.served.key.fingerprint, serving), timeout=_DIRECTORY_SECONDS)
        silent = directory.complaints.remote(self.teacher_work.served.key.fingerprint)
        for actor_id in ray.get(silent, timeout=_DIRECTORY_SECONDS):
            self.complain(actor_id)

    def add(self, other: "ReplicaGroup") -> None:
        """Count a later crew's work as this one's."""
        self.computed, self.restarts = self.computed + other.computed, self.restarts + other.restarts
        self.busy_seconds += other.busy_seconds
        self.answered += other.progress.took

    def release(self) -> None:
        for replica in self.replicas:
            ray.kill(replica.actor)
        self.replicas.clear()
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None


def _short(error: BaseException) -> str:
    """The last line that says something: Ray's texts are pages."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
