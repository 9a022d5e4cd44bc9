"""Whether this process is connected to Ray, and how many GPUs there are; imports Ray and torch only if needed."""

import sys

from raykd.common.gpu_driver import has_gpu_driver


def ray_is_running() -> bool:
    """Whether this process has started or joined Ray."""
    if "ray" not in sys.modules:
        return False
    import ray

    return ray.is_initialized()


def local_gpus() -> int:
    """Number of this machine's GPUs."""
    if sys.platform == "linux" and not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def accelerators() -> list[str]:
    """The types of the connected cluster's GPUs, as Ray names them."""
    import ray

    return sorted(name for name in ray.cluster_resources() if name.startswith("accelerator_type:"))


def cluster_gpus() -> float:
    """Number of the cluster's GPUs; without a connection to Ray, this machine's."""
    if not ray_is_running():
        return local_gpus()
    import ray

    return ray.cluster_resources().get("GPU", 0.0)
