"""One teacher's replicas: their placement, the blocks they compute, and what happens when one dies or hangs."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raykd.cluster.placement import fits, idle
from raykd.cluster.resources import Resources
from raykd.cluster.task import raise_user_error
from raykd.common.device_errors import cuda_error, gpu_failed
from raykd.common.errors import TrainingError
from raykd.common.late import Late
from raykd.common.units import counted
from raykd.config.schema import Config
from raykd.logits import LogitStore
from raykd.logits.teacher_logits import block_name
from raykd.teachers import places
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.counts import PrecomputeCounts
from raykd.teachers.replica import Progress, QueuedBlock, Replica
from raykd.teachers.requests import BlockRequest

if TYPE_CHECKING:
    import ray
    from ray.util.placement_group import PlacementGroup
else:
    ray = Late("ray")


log = logging.getLogger(__name__)
_AHEAD = 2  # blocks assigned to a replica at once, so that it need not wait for the driver
_EXTRA_SECONDS = 60.0  # an extra replica that has not been placed by then is abandoned
_STEADY_SECONDS = 60.0  # a live replica that has served for this long did not fail on startup
_DIRECTORY_SECONDS = 60.0  # it answers in milliseconds, but the machine can be busy
_MAX_HANGS = 1  # more hangs than this on the same block are an error


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
        """A group that has not started yet: `reserve` or `follow` places it, `assign_blocks` starts it.

        blocks: to compute.
        gpus: of the whole cluster, from which "auto" resources follow.
        stored: names of the blocks that were already stored when `blocks` was determined.
        """
        self.teacher_work, self.store, self.config, self.on_progress = teacher_work, store, config, on_progress
        self.name = teacher_work.config.name
        self.size = Resources.of(teacher_work.config, gpus)
        self.auto = teacher_work.config.replicas == "auto"
        self.wanted = [self.size] * (1 if teacher_work.config.replicas == "auto" else teacher_work.config.replicas)
        self.blocks = deque(QueuedBlock(request) for request in blocks)
        # These blocks share no rows, so a replica need not read them to learn which rows of its own block are stored.
        self.disjoint = {*stored, *(block_name(b.row_ids) for b in blocks)}
        total = sum(len(b.request.positions) for b in self.blocks)
        rows = sum(len(encoded.open()) for _, encoded in teacher_work.splits.values())
        self.counts = PrecomputeCounts(self.name, total, stored=rows - total)
        self.deaths: dict[int | None, int] = {}  # consecutive, by place; a lost node counts once for each of its places
        self.replicas: list[Replica] = []
        self.places: PlacementGroup | None = None
        self.published: list[str] | None = None  # the ids of the actors that students know
        self._grow_after = 0.0  # when another extra replica can be tried

    @property
    def done(self) -> bool:
        return self.counts.done

    @property
    def placed(self) -> bool:
        return self.places is not None

    def reserve(self, closed: Callable[[], bool], busy: Callable[[], bool]) -> None:
        """See `places.reserve`: a place for each replica that the config asks for."""
        teacher, timeout = self.teacher_work.config, self.config.ray.timeout_s
        self.places = places.reserve(teacher, self.size, len(self.wanted), timeout, closed, busy)

    def assign_blocks(self, serving: bool) -> None:
        """Start as many replicas as there are places and work, and assign each its next blocks.

        serving: the replicas also answer students, so they are needed without blocks, too.
        """
        work = serving or bool(self.blocks) or any(r.assigned for r in self.replicas)
        taken = {r.place for r in self.replicas}
        for place in range(len(self.wanted)):
            if work and place not in taken and (serving or len(self.replicas) < max(1, len(self.blocks))):
                self._start_replica(place)
        for replica in self.replicas:
            while replica.loaded and self.blocks and len(replica.assigned) < _AHEAD:
                if not replica.assigned:
                    replica.last_sign = time.monotonic()
                block = self.blocks.popleft()
                left = self.counts.left // max(len(self.wanted), sum(r.loaded for r in self.replicas))
                if self.counts.restarts:
                    left = 0  # no trials of torch.compile: one can have ended a process, and would end the next one
                replica.assigned.append((replica.actor.precompute.remote(block.request, replica.sent, left), block))
                replica.sent += 1

    def _start_replica(self, place: int | None) -> None:
        from raykd.teachers.actor import TeacherActor

        options = self.size.options()
        if self.places is not None and place is not None:
            options = places.options_at(self.places, place, self.size)
        actor = TeacherActor.options(**options).remote(  # type: ignore[attr-defined]
            self.store, self.size.num_cpus, self.size.num_gpus
        )
        self._load(actor, place, actor.live.remote())

    def _load(self, actor: Any, place: int | None, death_ref: Any) -> None:
        loaded = actor.load.remote(self.teacher_work.served, self.disjoint)
        self.replicas.append(Replica(actor, place, loaded, death_ref, time.monotonic()))

    def can_follow(self, other: ReplicaGroup) -> bool:
        """Whether it can use the places of `other` once that one is done."""
        mine, others = self.teacher_work.config, other.teacher_work.config
        return (self.size, mine.replicas, mine.placement) == (other.size, others.replicas, others.placement)

    def follow(self, other: ReplicaGroup) -> None:
        """Take over the places and processes of a group that is done, since a new process spends seconds on imports."""
        self.places, other.places = other.places, None
        for replica in sorted(other.replicas, key=lambda replica: replica.place is None):
            if replica.loaded and len(self.replicas) < len(self.blocks):
                self._load(replica.actor, replica.place, replica.death_ref)
            else:
                ray.kill(replica.actor)
        other.replicas.clear()

    def pending_refs(self) -> Iterator[Any]:
        """The refs whose completion is the group's next event."""
        for replica in self.replicas:
            yield replica.death_ref
            if not replica.loaded:
                yield replica.load_ref
            elif replica.assigned:
                yield replica.assigned[0][0]  # a replica computes its blocks in order

    def on_ready(self, ref: Any) -> None:
        """Handle a finished ref of `pending_refs`: a replica has loaded, computed a block, or died."""
        from raykd.cluster.causes import cause_of  # imports Ray

        replica = next(
            (r for r in self.replicas if ref in (r.death_ref, r.load_ref) or (r.assigned and ref == r.assigned[0][0])),
            None,
        )
        if replica is None:
            return  # the replica has been stopped since
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if gpu_failed(error.cause) or (ref == replica.death_ref and cuda_error(error.cause)):
                self._on_replica_lost(replica, cause_of(error))
                return
            raise_user_error(error)
            raise TrainingError(f"teacher {self.name}: {cause_of(error)}") from error
        except ray.exceptions.RayError as error:
            self._on_replica_lost(replica, cause_of(error))
            return
        if ref == replica.load_ref:
            replica.loaded, replica.last_sign = True, time.monotonic()
            self.counts.on_ready()
            log.debug("teacher %s: a replica is ready (process %s)", self.name, answer)
            return
        replica.assigned.popleft()
        replica.last_sign = time.monotonic()
        self.deaths[replica.place] = 0
        self.counts.on_answer(answer)
        if answer.halved:
            log.warning(
                "teacher %s: %s did not fit into memory, so raykd halved what is computed at once (the last bits of "
                "logits may differ); lower logits.batch_tokens",
                self.name,
                counted(answer.halved, "batch", "batches"),
            )
        for note in answer.notes:
            log.info("teacher %s: %s", self.name, note)
        self.on_progress(self.progress)

    @property
    def progress(self) -> Progress:
        return self.counts.progress(replicas=sum(r.loaded for r in self.replicas))

    def _on_replica_lost(self, replica: Replica, cause: str, hung: bool = False) -> None:
        """Return its blocks to the queue; `assign_blocks` starts a new replica in its place.

        hung: the replica was alive but did not answer in time. Raises TrainingError if this happened too often.
        """
        self.replicas.remove(replica)
        ray.kill(replica.actor)
        if replica.place is None and not replica.loaded:  # an extra replica that was not placed: nothing is lost
            self._grow_after = time.monotonic() + _EXTRA_SECONDS
            return
        for _, block in reversed(replica.assigned):
            self.blocks.appendleft(block)
        if replica.assigned:
            first = replica.assigned[0][1]
            first.deaths, first.hangs = first.deaths + 1, first.hangs + hung
        if self.done and replica.loaded and time.monotonic() - replica.last_sign > _STEADY_SECONDS:
            self.deaths[replica.place] = 0  # live: it served, though no block's answer shows it
        self.counts.on_restart()
        deaths = self.deaths.get(replica.place, 0) + 1
        if replica.place is not None:  # extra replicas have none, and several can die with one node
            self.deaths[replica.place] = deaths
        log.warning("teacher %s: lost a replica (%s); its blocks go to other replicas", self.name, cause)
        self.on_progress(self.progress)
        deaths = max(deaths, *(b.deaths for b in self.blocks), 0)
        if any(b.hangs > _MAX_HANGS for b in self.blocks):
            raise TrainingError(
                f"teacher {self.name}: no answer within logits.timeout_s = {self.config.logits.timeout_s:g} s, "
                f"{_MAX_HANGS + 1} times on the same block. Raise it, lower logits.block_rows, or check the model"
            )
        if deaths > self.config.ray.max_retries:
            raise TrainingError(
                f"teacher {self.name}: its process died or its GPU failed {deaths} times in a row ({cause}). "
                f"If memory ran out, lower logits.batch_tokens; otherwise check its checkpoint, its GPU and Ray's logs"
            )

    def check_replicas(self, may_grow: bool) -> None:
        """Replace replicas that hang, and start extra ones (replicas: auto) on idle resources if `may_grow`."""
        now = time.monotonic()
        for replica in list(self.replicas):
            silent = now - replica.last_sign
            if replica.loaded and replica.assigned and silent > self.config.logits.timeout_s:
                self._on_replica_lost(replica, f"no answer for {silent:.0f} s", hung=True)
            elif not replica.loaded and replica.place is None and silent > _EXTRA_SECONDS:
                self._on_replica_lost(replica, "no resources were free for it")
            elif not any(r.loaded for r in self.replicas) and silent > self.config.ray.timeout_s:
                raise TrainingError(
                    f"teacher {self.name}: not loaded within ray.timeout_s = {self.config.ray.timeout_s:g} s "
                    f"(requested: {self.size}). Check the cluster, or raise it"
                )
        waiting = self.replicas and not any(r.loaded for r in self.replicas)
        if waiting and not self.config.ray.wait_s and not fits([self.size]):
            raise TrainingError(
                f"teacher {self.name}: its node is gone, and no other node has room for it ({self.size}). "
                f"Run the same command again when there is one, or set ray.wait_s"
            )
        if not self.auto:
            return
        for replica in [
            r for r in self.replicas if r.place is None and r.loaded and not r.assigned and not self.blocks
        ]:
            self.replicas.remove(replica)
            ray.kill(replica.actor)
        loading = sum(not r.loaded for r in self.replicas)
        may_grow = may_grow and now > self._grow_after and not loading
        if may_grow and len(self.blocks) > len(self.replicas) and idle(self.size):
            self._start_replica(None)

    def stop_extra(self) -> None:
        """Stop the extra replicas; their blocks go to the others."""
        for replica in [r for r in self.replicas if r.place is None]:
            self.replicas.remove(replica)
            ray.kill(replica.actor)
            self.blocks.extendleft(block for _, block in reversed(replica.assigned))

    def on_unresponsive(self, actor_id: str) -> None:
        """Replace a replica that has not answered a student in time."""
        for replica in [r for r in self.replicas if r.actor._actor_id.hex() == actor_id]:
            self._on_replica_lost(replica, "a student's request was not answered in time", hung=True)

    def publish(self, directory: Any) -> None:
        """Write the serving replicas into the directory if they changed, and replace those reported unresponsive."""
        serving = [r.actor for r in self.replicas if r.loaded]
        ids = [actor._actor_id.hex() for actor in serving]
        if ids != self.published:
            self.published = ids
            ray.get(directory.put.remote(self.teacher_work.served.key.fingerprint, serving), timeout=_DIRECTORY_SECONDS)
        unresponsive = directory.take_unresponsive.remote(self.teacher_work.served.key.fingerprint)
        for actor_id in ray.get(unresponsive, timeout=_DIRECTORY_SECONDS):
            self.on_unresponsive(actor_id)

    def release(self) -> None:
        for replica in self.replicas:
            ray.kill(replica.actor)
        self.replicas.clear()
        if self.places is not None:
            places.release(self.places)
            self.places = None
