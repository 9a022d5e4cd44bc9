"""Whether this process is connected to Ray, and how many GPUs there are; imports Ray and torch only if needed."""

import os
import sys

# Without one of these files a machine has no GPU that torch can use (NVIDIA's, also under WSL, and AMD's drivers).
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def ray_is_running() -> bool:
    """Whether this process has started or joined Ray."""
    if "ray" not in sys.modules:
        return False
    import ray

    return ray.is_initialized()


def local_gpus() -> int:
    """Number of this machine's GPUs."""
    if sys.platform == "linux" and not any(map(os.path.exists, _DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count()


def cluster_gpus() -> float:
    """Number of the cluster's GPUs; without a connection to Ray, this machine's."""
    if not ray_is_running():
        return local_gpus()
    import ray

    return ray.cluster_resources().get("GPU", 0.0)
