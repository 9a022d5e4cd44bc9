"""Connects to a Ray cluster or starts a local one, and checks that all nodes share `output`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from raykd.cluster.local import kept_sigterm, read_auth_mode_again, start_local
from raykd.cluster.placement import fits
from raykd.cluster.resources import TRAIN_CONTROLLER_CPUS, Resources
from raykd.cluster.running import cluster_gpus, ray_is_running
from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.config.schema import Config, RayConfig

if TYPE_CHECKING:
    import ray
else:
    ray = Late("ray")


_CHECK_SECONDS = 60.0  # for all nodes; a node that has not answered by then is not checked
_SEEN_SECONDS = 10.0  # for a network file system to show a new file


@contextmanager
def ray_session(settings: RayConfig, trainings_first: bool = True) -> Iterator[None]:
    """Ray for the time of one command. A local Ray is stopped afterwards; an existing cluster keeps running.

    trainings_first: whether the command begins with trainings. A local Ray then imports their modules in advance.
    """
    if ray_is_running():
        yield
        return
    if address := settings.cluster:
        _join(address)
    else:
        if trainings_first:
            start_local()
        else:
            start_local(0)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Connect to a cluster. Raises ConfigError."""
    try:
        _answers(address)
    except (OSError, ValueError) as error:  # ValueError: of a host that no name can be
        reason = f"no cluster answers at this address ({getattr(error, 'strerror', None) or error})"
        raise ConfigError("ray.address", address, reason, "Start it, or remove the address to run here") from None
    read_auth_mode_again()
    try:
        with kept_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        reason = f"Ray cannot connect to it ({' '.join(str(error).split())[:300]})"
        hint = "Give the head's HOST:PORT (6379, if it was started without another), its versions of Ray and Python, "
        hint += "and, if it requires one, its token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token"
        raise ConfigError("ray.address", address, reason, hint) from None


def _answers(address: str) -> None:
    """Raise OSError if nothing listens at the address. Ray itself would retry for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def check_shared(config: Config) -> None:
    """Raise ConfigError if a node does not see `output`, because trainings on that node would be lost."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raykd.cluster.causes import cause_of

    gpus = cluster_gpus()
    needs = [Resources.of(config.student, gpus), *(Resources.of(teacher, gpus) for teacher in config.teachers)]
    if config.student.workers > 1:  # the process that drives a trial of several workers can be anywhere
        needs.append(Resources(1, TRAIN_CONTROLLER_CPUS, 0))
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    nodes = {number: node["NodeManagerAddress"] for number, node in alive.items()}
    if len(nodes) == 1:
        return
    mark = config.store / "flags" / f"shared-{uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        checks = {
            ray.remote(num_cpus=0, max_retries=0)(_sees)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(mark): node
            for node in nodes
        }
        for check in ray.wait(list(checks), num_returns=len(checks), timeout=_CHECK_SECONDS)[0]:
            address = nodes[checks[check]]
            try:
                seen = ray.get(check)
            except ray.exceptions.RayTaskError as error:
                here = [(alive[checks[check]]["Resources"], alive[checks[check]].get("Labels", {}))]
                if not any(fits([replace(one, workers=1)], here) for one in needs):
                    continue  # nothing is placed there
                reason = f"the node {address} cannot run raykd ({cause_of(error)}), so every process there would fail"
                hint = "Install the same raykd, Python and libraries on all nodes"
                raise ConfigError("ray.address", config.ray.address, reason, hint) from None
            except ray.exceptions.RayError:  # the node has just gone; no training will be placed on it
                continue
            if not seen:
                raise ConfigError(
                    "output",
                    config.output,
                    f"the node {address} does not see it, so trainings on that node would be lost",
                    "Set output or RAYKD_HOME to a folder that all nodes share, such as one on NFS",
                )
    finally:
        mark.unlink(missing_ok=True)


def _sees(mark: Path) -> bool:
    """Whether this node sees a file. Retries, because a network file system can show a new file later."""
    limit = time.monotonic() + _SEEN_SECONDS
    while not (seen := os.access(mark, os.F_OK)) and time.monotonic() < limit:  # False also if its folder is closed
        time.sleep(0.2)
    return seen
