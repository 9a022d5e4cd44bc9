"""Ray: connecting to a cluster, or starting a local one."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from raykd.environment import set_environment

set_environment()  # before Ray is imported

import ray  # noqa: E402

from raykd.config import RayConfig  # noqa: E402
from raykd.errors import ConfigError  # noqa: E402
from raykd.local_ray import kept_sigterm, start_local  # noqa: E402


@contextmanager
def ray_session(settings: RayConfig) -> Iterator[None]:
    """Ray for the time of one command. A cluster that was there before stays; a local one is stopped."""
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address:
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


def cluster_gpus() -> float:
    return ray.cluster_resources().get("GPU", 0.0)
