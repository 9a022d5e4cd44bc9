"""Ray: connecting to a cluster, or starting a local one; whether its nodes share what they must."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from raykd.common.environment import set_environment

set_environment()  # before Ray is imported

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from raykd.cluster.local import kept_sigterm, start_local  # noqa: E402
from raykd.common.errors import ConfigError  # noqa: E402
from raykd.config.schema import Config, RayConfig  # noqa: E402

_LOOK_SECONDS = 60.0  # for all nodes; one that has not answered by then is not waited for
_SEEN_SECONDS = 10.0


@contextmanager
def ray_session(settings: RayConfig) -> Iterator[None]:
    """Ray for the time of one command. A cluster that was there before stays; a local one is stopped."""
    if ray.is_initialized():
        yield
        return
    if address := settings.cluster:
        try:
            _answers(address)
            with kept_sigterm():
                ray.init(address=address, log_to_driver=False, logging_level="warning")
        except OSError as error:  # ConnectionError is one
            raise ConfigError(
                "ray.address",
                address,
                f"no cluster answers there ({str(error).splitlines()[0]})",
                "Start it, or remove the address to run on this machine",
            ) from None
    else:
        start_local()
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raise OSError if nothing listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def check_shared(config: Config) -> None:
    """Every node that is there sees `output`. Raises ConfigError: a training elsewhere would be lost."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) == 1:
        return
    mark = config.store / "flags" / f"shared-{uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        looks = {
            _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(mark): node
            for node in nodes
        }
        for look in ray.wait(list(looks), num_returns=len(looks), timeout=_LOOK_SECONDS)[0]:
            address = nodes[looks[look]]
            try:
                seen = ray.get(look)
            except RayError:  # it goes away just now; what ran there is placed elsewhere
                continue
            if not seen:
                raise ConfigError(
                    "output",
                    config.output,
                    f"the node {address} does not see it, and trainings there would be lost",
                    "Name a folder that all nodes share (NFS, a mounted bucket), by output or RAYKD_HOME",
                )
    finally:
        mark.unlink(missing_ok=True)


@ray.remote(num_cpus=0, max_retries=0)
def _sees(mark: Path) -> bool:
    """A network file system may show a new file a little later."""
    limit = time.monotonic() + _SEEN_SECONDS
    while not (seen := mark.exists()) and time.monotonic() < limit:
        time.sleep(0.2)
    return seen


def cluster_gpus() -> float:
    return ray.cluster_resources().get("GPU", 0.0)
