"""Ray: connecting to a cluster or starting a local one, and what it has room for."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from raykd.environment import set_environment

set_environment()  # before Ray is imported

import ray  # noqa: E402
import torch  # noqa: E402

from raykd.config import Config, RayConfig, StudentConfig, TeacherConfig  # noqa: E402
from raykd.errors import ConfigError  # noqa: E402
from raykd.job import Resources  # noqa: E402
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


def check_room(config: Config) -> None:
    """Every member fits the cluster that is connected; if none is, and none is named, this machine.

    Raises ConfigError. A cluster that is named but not connected is not asked.
    """
    members: list[tuple[str, StudentConfig | TeacherConfig]] = [("student", config.student)]
    members += [(f"teachers.{t.name}", t) for t in config.teachers]
    if ray.is_initialized():
        gpus = cluster_gpus()
        for key, member in members:
            slots(Resources.of(member, gpus), f"{key}.num_cpus")
    elif not (config.ray.address or os.environ.get("RAY_ADDRESS")):
        has = {"num_cpus": os.cpu_count() or 1, "num_gpus": torch.cuda.device_count()}
        for key, member in members:
            wanted = Resources.of(member, has["num_gpus"])
            for kind, there in has.items():
                if (needed := getattr(wanted, kind)) * wanted.workers > there:
                    workers = f" for each of {wanted.workers} workers" if wanted.workers > 1 else ""
                    raise ConfigError(
                        f"{key}.{kind}",
                        f"{needed:g}{workers}",
                        f"this machine has {there}, and no cluster is named",
                        "Ask for less, or set ray.address",
                    )


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
