"""What a bug report needs: the versions of what raykd builds on, and the machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raykd import __version__

_PACKAGES = ("ray", "torch", "transformers", "datasets", "mlflow", "numpy", "pandas", "safetensors")


def versions() -> list[tuple[str, str]]:
    """Names and values, in the order in which they are shown. Nothing is imported, so a broken install shows too."""
    rows = [("raykd", __version__), ("python", platform.python_version()), ("platform", platform.platform())]
    rows += [(name, _version(name)) for name in _PACKAGES]
    return [*rows, ("cpus", str(os.cpu_count())), ("memory", _memory()), ("gpus", _gpus())]


def short_versions() -> str:
    """One line: raykd's version, and those of Python and of the packages that decide the numbers."""
    names = ", ".join(f"{name} {_version(name)}" for name in ("ray", "torch", "transformers"))
    return f"raykd {__version__} (python {platform.python_version()}, {names})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    try:
        kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    except (OSError, IndexError):  # not on Linux
        return "unknown"
    return f"{kib / 2**20:.0f} GiB"


def processor_name() -> str:
    """The CPU's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _gpus() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return "; ".join(done.stdout.strip().splitlines()) or "none"
