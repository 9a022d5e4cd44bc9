"""Waiting for resources: what is waited for appears on the screen, and the wait has a limit."""

import time

import ray

from raykd.cluster.placement import alive_nodes, shown_node
from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError

FIRST_SECONDS, EVERY_SECONDS = 10.0, 30.0  # the first word about a wait comes after, and then one every so often


class NoRoom(TrainingError):
    """Resources could not be had in time."""


class RoomWait:
    """For some work that cannot start. The time in which other work of this command holds resources does not count."""

    def __init__(self, limit: float) -> None:
        """limit: seconds, of ray.timeout_s."""
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        self._since, self._told = time.monotonic(), float("-inf")

    def look(self, name: str, wanted: str, settings: str) -> str:
        """What to show now, "" for nothing. NoRoom once the limit is over.

        name: of what waits. wanted: the resources that it asks for. settings: the config's keys that ask for them.
        """
        now = time.monotonic()
        waited = now - self._since
        if waited > self.limit:
            raise NoRoom(
                f"{name}: no room for {wanted} within ray.timeout_s = {self.limit:g} s. {shown_cluster()}. End what "
                f"else runs there, ask for less ({settings}), or raise ray.timeout_s"
            )
        if waited < FIRST_SECONDS or now - self._told < EVERY_SECONDS:
            return ""
        self._told = now
        return f"{name}: waiting for {wanted}, {waited:.0f} s of ray.timeout_s = {self.limit:g} s. {shown_cluster()}"

    def training(self, name: str, key: str, needs: Resources) -> str:
        """`look` for a training. key: the config's section that it comes from."""
        kinds = [f"{key}.{kind}" for kind in ("num_cpus", "num_gpus") if getattr(needs, kind)]
        if needs.workers == 1:
            return self.look(name, str(needs), ", ".join(kinds))
        return self.look(name, f"{needs.workers} workers of {needs} each", ", ".join([f"{key}.workers", *kinds]))


def shown_cluster() -> str:
    """What the cluster has, and what of it is free."""
    nodes, free = alive_nodes(), ray.available_resources()
    left = ", ".join(f"{free.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
    return f"The cluster has {len(nodes)} node(s) ({'; '.join(map(shown_node, nodes))}), of which {left} are free"
