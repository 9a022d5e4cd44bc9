"""Measures seconds and bytes of this process, of a new one, or of another one."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

MILLION = 1_000_000


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a new process; returns its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def memory(name: str) -> float:
    """Bytes of this process. RssAnon: its private memory. VmHWM: the peak since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> float:
    """Reset the peak; returns the current bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmHWM")


def seconds(work: Callable[[], Any], repeats: int = 1, clock: Callable[[], float] = time.process_time) -> float:
    """Median of several runs. CPU time, including the system's, so that other work on the machine has little effect."""
    times = []
    for _ in range(repeats):
        since = clock()
        work()
        times.append(clock() - since)
    return float(np.median(times))


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
