"""A real MLflow server on this machine, for the time of a test."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import free_ports


class Server:
    """Not started yet. On a free port, which Ray's workers do not use (10002 to 19999); it keeps it when started again.

    store: SQLAlchemy's address of a migrated store; folder: for its log and artifacts. users: a file of basic auth's
    settings; without it the server asks for nothing.
    """

    def __init__(self, store: str, folder: Path, users: Path | None = None) -> None:
        (port,) = free_ports(1)
        self.folder, self.address = folder, f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self.command += ["--workers", "1", "--backend-store-uri", store]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]
        # Else it starts eight processes for jobs of its own, which nobody here asks for.
        self.environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if users:
            self.command += ["--app-name", "basic-auth"]
            self.environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32}

    def start(self) -> None:
        log = self.folder / "server.log"
        with log.open("a") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                env=self.environment,
            )
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                break
            except OSError:
                assert self.process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


@contextmanager
def mlflow_server(database: Path, folder: Path) -> Iterator[str]:
    """The address of a server on a migrated sqlite file."""
    server = Server(f"sqlite:///{database}", folder)
    try:
        server.start()
        yield server.address
    finally:
        server.stop()
