"""The places that a teacher's replicas hold on the cluster: a placement group with one bundle for each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raykd.cluster.resources import Resources
from raykd.cluster.room import RoomWait
from raykd.common.errors import TrainingError
from raykd.common.units import counted
from raykd.config.schema import TeacherConfig

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5  # the wait is interrupted this often, to see whether the pool was closed


def reserve(
    teacher: TeacherConfig,
    size: Resources,
    count: int,
    timeout_s: float,
    closed: Callable[[], bool],
    busy: Callable[[], bool],
) -> PlacementGroup | None:
    """Reserve `count` places. A place is kept when its replica dies.

    busy: whether trainings of this command hold resources; that time does not count.

    Returns None once `closed()` is true. Raises TrainingError if there is no room in time.
    """
    from ray.util.placement_group import placement_group

    strategy = "SPREAD" if teacher.placement == "spread" else "PACK"
    bundles = [size.bundle() or {"CPU": 0.001}] * count
    labels = dict(size.node_labels)
    group = placement_group(bundles, strategy, bundle_label_selector=[labels] * count if labels else None)
    room, key = RoomWait(timeout_s), f"teachers.{teacher.name}"
    wanted = f"{counted(count, 'replica')} of {size}"
    settings = ", ".join(f"{key}.{name}" for name in ("replicas", "num_cpus", "num_gpus"))
    try:
        while not group.wait(_POLL_SECONDS):
            if closed():
                release(group)
                return None
            if busy():
                room.reset()
            if text := room.look(f"teacher {teacher.name}", wanted, settings):
                log.info(text)
    except TrainingError:
        release(group)
        raise
    return group


def options_at(group: PlacementGroup, place: int, size: Resources) -> dict[str, Any]:
    """Options of an actor at one of the places: the bundle decides on which node."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(group, place)
    return {"num_cpus": size.num_cpus, "num_gpus": size.num_gpus, "scheduling_strategy": strategy}


def release(group: PlacementGroup) -> None:
    """Free the places. Ray kills the actors in them."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)
