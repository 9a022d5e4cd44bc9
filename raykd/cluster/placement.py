"""Whether teachers and students fit the cluster, and what to change if they do not."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raykd.cluster.nodes import own_labels
from raykd.cluster.resources import Resources
from raykd.cluster.running import cluster_gpus, local_gpus, ray_is_running
from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.common.units import counted
from raykd.config.schema import Config

if TYPE_CHECKING:
    import ray
else:
    ray = Late("ray")


log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_ASK_SECONDS = 5.0  # Ray keeps one request for the whole cluster, which other commands and Ray Train replace by theirs
_LOG_SECONDS = 30.0  # between two log lines while waiting for the cluster to grow
Node = tuple[dict[str, float], dict[str, str]]  # resources, labels
Bundle = Node  # what one worker or replica asks of a node


def check_room(config: Config) -> None:
    """Raise ConfigError if a teacher or the student does not fit the connected cluster.

    Without a connection the resources of this machine are checked, unless the config names a cluster: then nothing is.
    With `ray.wait_s`, requests the resources from the autoscaler and waits that long for them.
    """
    if ray_is_running():
        limit, logged, asked = time.monotonic() + config.ray.wait_s, time.monotonic(), float("-inf")
        demands = _demands(config, cluster_gpus())
        try:
            while (error := _first_misfit(demands, alive_nodes())) and time.monotonic() < limit:
                if time.monotonic() - asked > _ASK_SECONDS:
                    asked = time.monotonic()
                    _ask_to_grow([r for _, wanted in demands for r in wanted])
                if time.monotonic() - logged > _LOG_SECONDS:
                    logged = time.monotonic()
                    log.info("waiting for the cluster to grow, %.0f s more of ray.wait_s: %s", limit - logged, error)
                time.sleep(_POLL_SECONDS)
                demands = _demands(config, cluster_gpus())  # the first GPU changes the default of num_gpus
        finally:
            if config.ray.wait_s:
                _ask_to_grow([])  # a request is kept until the next one, so the nodes would never be released
        if error:
            raise error
    elif not config.ray.cluster:
        gpus = local_gpus()
        machine: Node = ({"CPU": os.cpu_count() or 1, "GPU": gpus}, {})
        # Without accelerators and labels, which this process does not know.
        demands = [
            (key, [Resources(r.workers, r.num_cpus, r.num_gpus) for r in wanted])
            for key, wanted in _demands(config, gpus)
        ]
        if error := _first_misfit(demands, [machine]):
            raise error


def _demands(config: Config, gpus: float) -> list[tuple[str, list[Resources]]]:
    """The resources that must fit at once, with the key of the config that requests them."""
    student = Resources.of(config.student, gpus)
    wanted = [("student.num_cpus", [student])]
    for teacher in config.teachers:
        count = 1 if teacher.replicas == "auto" else teacher.replicas
        needs = [Resources.of(teacher, gpus)] * count
        key = f"teachers.{teacher.name}.{'num_cpus' if count == 1 else 'replicas'}"
        wanted.append((key, needs))
    if config.logits.mode == "live" and config.method.distils:
        wanted.append(("logits.mode", [r for _, needs in wanted for r in needs]))
    return wanted


def _first_misfit(demands: list[tuple[str, list[Resources]]], nodes: list[Node]) -> ConfigError | None:
    for key, needs in demands:
        if fits(needs, nodes):
            continue
        each = f"{needs[0].workers} workers of {needs[0]} each" if needs[0].workers > 1 else f"{needs[0]}"
        wanted = each if len(needs) == 1 else f"{len(needs)} replicas of {each}"
        hint = "Ask for less (num_cpus, num_gpus, replicas), start a larger cluster, or set ray.wait_s if it grows"
        if key == "logits.mode":
            wanted = f"live: the student and every teacher at once ({'; '.join(map(str, needs))})"
            hint = "Use logits.mode=stored, ask for shares (num_cpus=0.5, num_gpus=0.25), or start a larger cluster"
        has = "; ".join(shown_node(node) for node in nodes)
        return ConfigError(key, wanted, f"this does not fit the cluster of {counted(len(nodes), 'node')} ({has})", hint)
    return None


def shown_node(node: Node) -> str:
    has, labels = node
    parts = [f"{has.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")]
    parts += [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
    return ", ".join(parts + own_labels(labels))


def alive_nodes() -> list[Node]:
    return [(node["Resources"], node.get("Labels", {})) for node in ray.nodes() if node["Alive"]]


def fits(needs: Sequence[Resources], nodes: list[Node] | None = None) -> bool:
    """Whether all of these fit at once on an otherwise empty cluster, by first fit in two orders.

    needs: the requests.
    nodes: the cluster; None: the one that is connected.
    """
    nodes = alive_nodes() if nodes is None else nodes
    bundles = [(r.bundle(), dict(r.node_labels)) for r in needs for _ in range(r.workers)]
    return any(_placed(sorted(bundles, key=order), nodes) for order in (_large_first, _bound_first))


def _placed(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    free = [_Free(*node) for node in nodes]
    return all(any(node.take(*bundle) for node in free) for bundle in bundles)


def _large_first(bundle: Bundle) -> tuple[float, ...]:
    wanted, labels = bundle
    return -wanted.get("GPU", 0), -wanted.get("CPU", 0), -len(labels)


def _bound_first(bundle: Bundle) -> tuple[float, ...]:
    """First what fits on few nodes only, because of labels or an accelerator, before others take these nodes' room."""
    wanted, labels = bundle
    return -len(labels) - sum(name.startswith("accelerator_type:") for name in wanted), *_large_first(bundle)


class _Free:
    """What a node has left. GPUs are counted one by one: a share is of one GPU, so two GPUs hold 0.6 only twice."""

    def __init__(self, has: dict[str, float], labels: dict[str, str]) -> None:
        self.has, self.labels = dict(has), labels
        self.gpus = [1.0] * int(has.get("GPU", 0))

    def take(self, bundle: dict[str, float], labels: dict[str, str]) -> bool:
        wanted = bundle.get("GPU", 0)
        share = min(wanted, 1.0)
        chosen = [i for i, left in enumerate(self.gpus) if left + 1e-9 >= share][: math.ceil(wanted)]
        others = {kind: amount for kind, amount in bundle.items() if kind != "GPU"}
        if not (
            labels.items() <= self.labels.items()
            and len(chosen) == math.ceil(wanted)
            and all(self.has.get(kind, 0) + 1e-9 >= amount for kind, amount in others.items())
        ):
            return False
        for i in chosen:
            self.gpus[i] -= share
        for kind, amount in others.items():
            self.has[kind] -= amount
        return True


def _ask_to_grow(needs: list[Resources]) -> None:
    from ray.autoscaler.sdk import request_resources

    each = [r for r in needs for _ in range(r.workers)]
    labels = [dict(r.node_labels) for r in each]  # without them it grows any node group with such GPUs
    request_resources(bundles=[r.bundle() for r in each], bundle_label_selectors=labels)


def remove_orphans() -> None:
    """Remove the placement groups of this job whose creator has died.

    Ray removes them only at the job's end, and Ray Train's cleaner only if the group's workers have started. A group
    that was created just before its controller died would hold its resources, and the next attempt would wait forever.
    """
    from ray._private.state import state as global_state  # the public table does not name a group's creator
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    mine = ray.get_runtime_context().get_job_id()
    for found in global_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(found)
        creator = ray.ActorID(group.creator_actor_id)
        by_actor = not creator.is_nil() and group.creator_job_id.hex() == mine and not group.is_detached
        if not by_actor or group.state == PlacementGroupTableData.REMOVED:
            continue
        # The group itself does not always say so: seen once, minutes after its creator had been killed.
        if group.creator_actor_dead or global_state.actor_table(creator.hex()).get("State") == "DEAD":
            log.info("released placement group %s of a training that died", group.placement_group_id.hex())
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def idle(size: Resources) -> bool:
    """Whether the resources of one replica are free, in the whole cluster; they can be on different nodes."""
    free = ray.available_resources()
    return all(free.get(kind, 0) >= amount for kind, amount in size.bundle().items())
