"""Waiting for resources: the wait is shown on the screen and has a limit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raykd.cluster.placement import alive_nodes, shown_node
from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError
from raykd.common.late import Late
from raykd.common.units import counted

if TYPE_CHECKING:
    import ray
else:
    ray = Late("ray")


FIRST_SECONDS, EVERY_SECONDS = 10.0, 30.0  # time before the first message about a wait, and between two messages


class NoRoom(TrainingError):
    """Resources did not become free in time."""


class RoomWait:
    """A wait for resources. Call `reset` while other work of this command holds resources; that time does not count."""

    def __init__(self, limit: float) -> None:
        """limit: ray.timeout_s, in seconds."""
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        self._since, self._shown = time.monotonic(), float("-inf")

    def look(self, name: str, wanted: str, settings: str) -> str:
        """A message to show now; "" for none.

        name: of the training or teacher that waits.
        wanted: the resources that it requests.
        settings: the config's keys that request them.

        Raises NoRoom once the limit is over.
        """
        now = time.monotonic()
        waited = now - self._since
        if waited > self.limit:
            raise NoRoom(
                f"{name}: no room for {wanted} within ray.timeout_s = {self.limit:g} s. {shown_cluster()}. End other "
                f"work on the cluster, request less ({settings}), or raise ray.timeout_s"
            )
        if waited < FIRST_SECONDS or now - self._shown < EVERY_SECONDS:
            return ""
        self._shown = now
        return (
            f"{name}: waiting for {wanted}, {waited:.0f} s of ray.timeout_s = {self.limit:g} s. {shown_cluster()} "
            "(processes that are still starting, of this command too, hold theirs)"
        )

    def training(self, name: str, key: str, needs: Resources) -> str:
        """`look` for a training.

        name: the training's.
        key: its section in the config.
        needs: its resources.
        """
        kinds = [f"{key}.{kind}" for kind in ("num_cpus", "num_gpus") if getattr(needs, kind)]
        if needs.workers == 1:
            return self.look(name, str(needs), ", ".join(kinds))
        return self.look(name, f"{needs.workers} workers of {needs} each", ", ".join([f"{key}.workers", *kinds]))


def shown_cluster() -> str:
    """The cluster's resources, and how many of them are free."""
    nodes, free = alive_nodes(), ray.available_resources()
    left = ", ".join(f"{free.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
    size = f"{counted(len(nodes), 'node')} ({'; '.join(map(shown_node, nodes))})"
    return f"The cluster has {size}, of which {left} are free"
