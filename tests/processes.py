"""Processes and ports of this machine, for tests that start programs of their own."""

import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 600  # seconds; nothing here may take that long, on a machine that does other work beside it


def until(true: Callable[[], Any], limit: float = LIMIT) -> Any:
    """What it gives once it is true."""
    end = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


def trainers() -> Any:
    """A multiprocessing context whose processes have all that a training imports, without the seconds that it takes.

    They are forked from a server that imports it once and runs no threads; a fork of the tests' process would not be
    safe, because that one has threads of Ray and MLflow.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raykd.training.loop", "transformers.modeling_utils"])
    return context


def free_ports(count: int) -> list[int]:
    """Ones that Ray's workers do not use (10002 to 19999)."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(4 * count + 8)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return [port for port in ports if not 10002 <= port <= 19999][:count]


def descendants(pid: int) -> list[int]:
    children = [int(p) for path in Path(f"/proc/{pid}/task").glob("*/children") for p in path.read_text().split()]
    return [*children, *(d for child in children for d in descendants(child))]


def kill(process: subprocess.Popen) -> None:
    """As when its machine goes: all of its processes at once."""
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(LIMIT)
