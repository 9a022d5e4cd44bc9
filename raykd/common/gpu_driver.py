"""The GPUs of this machine, as its driver says. Does not import torch."""

import os
from pathlib import Path

_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, also under WSL, and AMD's


def has_gpu_driver() -> bool:
    """Whether this machine has a GPU that torch could use."""
    return any(map(os.path.exists, _FILES))


def gpu_models(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The names of NVIDIA's GPUs, each once; [] if there are none, or the driver does not list them.

    folder: where it does.
    """
    lines = [line for file in folder.glob("*/information") for line in file.read_text().splitlines()]
    return sorted({line.partition(":")[2].strip() for line in lines if line.startswith("Model:")})
