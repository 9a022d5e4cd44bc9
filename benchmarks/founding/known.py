"""What was trained so far: each training is run once and kept as a line of a file."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from raykd.common.hashing import fingerprint


class Known:
    """What was trained so far, by name: (validation score, test scores of the rows). Processes can share it."""

    def __init__(self, path: Path, until: float) -> None:
        self.path, self.until = path, until
        (path.parent / "locks").mkdir(parents=True, exist_ok=True)
        self.lines: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self._read = 0

    def read(self) -> None:
        """The lines that this or another process has added."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):  # another process is writing it
                        break
                    self._read += len(line)
                    found = json.loads(line)
                    self.lines[found["name"]] = found

    def get(self, name: str, make: Callable[[], dict[str, Any]], wait: bool) -> None:
        """Make and keep what is not known yet.

        wait: for another process that is making it; without, it is left to that process.

        Raises TimeoutError if there is no time for it.
        """
        self.read()
        if name in self.lines:
            return
        lock = self._lock(name)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            return
        try:
            self.read()
            if name not in self.lines:
                if time.time() > self.until:
                    raise TimeoutError(name)
                since = time.process_time()
                line = {"name": name} | make()
                self.seconds += time.process_time() - since
                self._add(line)
        finally:
            lock.release()

    def _add(self, line: dict[str, Any]) -> None:
        with self._lock("the file"):
            self.read()
            self.path.touch()
            with self.path.open("r+b") as file:
                file.seek(self._read)
                file.truncate()  # of a process that was killed while it wrote
                file.write(json.dumps(line).encode() + b"\n")
            self.read()

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.path.parent / "locks" / f"{fingerprint(name)}.lock")

    def validation(self, name: str) -> tuple[float, float]:
        return tuple(self.lines[name]["validation"])

    def test(self, name: str) -> np.ndarray:
        return np.asarray(self.lines[name]["test"], float)
