"""A real Ray head of its own, as `ray start` makes it: with a job server, a token, and worker nodes that join it."""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import free_ports, kill, until

BIN = Path(sys.executable).parent


class Head:
    """address: of the dashboard; environment: what a client of it needs; gcs: HOST:PORT. host: where nodes find it."""

    def __init__(self, folder: Path, environment: dict[str, str], cpus: int, host: str = "127.0.0.1") -> None:
        self.dashboard, gcs = free_ports(2)
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
