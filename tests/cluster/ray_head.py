"""A real Ray head of its own, as `ray start` makes it: with a job server, a token, and worker nodes that join it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 180  # seconds; nothing here may take that long
BIN = Path(sys.executable).parent


def until(true: Callable[[], Any], limit: float = LIMIT) -> Any:
    end = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


def free_port() -> int:
    """One that Ray's workers do not use (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if not 10002 <= (port := probe.getsockname()[1]) <= 19999:
                return port


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


class Head:
    """address: of the dashboard; environment: what a client of it needs; gcs: HOST:PORT. host: where nodes find it."""

    def __init__(self, folder: Path, environment: dict[str, str], cpus: int, host: str = "127.0.0.1") -> None:
        self.dashboard, gcs = free_port(), free_port()
        self.address, self.gcs = f"http://127.0.0.1:{self.dashboard}", f"{host}:{gcs}"
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        path = {"PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        # Its own folder, or a job would take the newest Ray of this machine for its cluster. A short one: sockets.
        self.temporary = tempfile.mkdtemp(prefix="raykd-")
        self.environment = plain | path | {"RAY_TMPDIR": self.temporary} | environment
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", str(cpus), "--port", str(gcs)]
        command += ["--node-ip-address", host, "--dashboard-agent-listen-port", "0"]  # its default may be another's
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard)]
        command += ["--object-store-memory", str(200 * 2**20), "--disable-usage-stats"]
        self.log = folder / "head.log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=self.environment
            )

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=5).close()
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)  # it wants a token
        except OSError:
            return False
        return True


@contextmanager
def ray_head(folder: Path, environment: dict[str, str], cpus: int = 4, host: str = "127.0.0.1") -> Iterator[Head]:
    head = Head(folder, environment, cpus, host)
    try:
        until(head.answers)
        yield head
    finally:
        kill(head.process)
        shutil.rmtree(head.temporary)
