"""Ray: connecting to a cluster or starting a local one, and what it has room for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from raykd.environment import set_environment

set_environment()  # before Ray is imported

import ray  # noqa: E402

from raykd.config import RayConfig  # noqa: E402
from raykd.errors import ConfigError  # noqa: E402
from raykd.job import Resources  # noqa: E402


@contextmanager
def ray_session(settings: RayConfig) -> Iterator[None]:
    """Ray for the time of one command. A cluster that was there before stays; a local one is stopped."""
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise ConfigError(
                "ray.address",
                address,
                f"no cluster answers there ({str(error).splitlines()[0]})",
                "Start it, or remove the address to run on this machine",
            ) from None
    else:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
    try:
        yield
    finally:
        ray.shutdown()


def cluster_gpus() -> float:
    return ray.cluster_resources().get("GPU", 0.0)


def slots(resources: Resources, key: str) -> int:
    """How many trainings or actors of this size the cluster holds at once. ConfigError if none."""
    places = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        fits = [has.get("CPU", 0) / resources.num_cpus] if resources.num_cpus else []
        fits += [has.get("GPU", 0) / resources.num_gpus] if resources.num_gpus else []
        places += int(min(fits) + 1e-9) if fits else 64
    places //= resources.workers
    if places < 1:
        whole = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
        raise ConfigError(
            key,
            resources.num_cpus,
            f"{resources.workers} of {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs fit nowhere, "
            f"the cluster has {whole} on {len(ray.nodes())} node(s)",
            "Ask for less (num_cpus, num_gpus, workers), or start a larger cluster",
        )
    return places
