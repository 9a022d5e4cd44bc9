"""The files of one teacher's logits in a local or NFS folder, where blocks are mapped in place."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from raykd.common.atomic import remove_stale, write_atomically
from raykd.logits.block import Block, open_block

# A student that waits for teachers looks 20 times a second. Listing an object store is a request that costs time
# and money, so it is listed again only after this long. A folder of thousands of blocks takes milliseconds; there
# the folder's own time says whether anything came or went, but on some file systems not at once: hence this, too.
RELIST_SECONDS = 1.0

FINGERPRINT = re.compile(r"[0-9a-f]{32}")


class Folder:
    """A local or NFS folder. OSError is as the file system gives it."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._listed = (-1, 0.0)  # the folder's time, and ours, when it was listed

    def names(self, always: bool = True) -> list[str] | None:
        """Names of the files; None, unless always, if it was listed a moment ago and has hardly changed since."""
        try:
            changed = self.path.stat().st_mtime_ns
            if not always and self._listed[0] == changed and time.monotonic() - self._listed[1] < RELIST_SECONDS:
                return None
            names = [entry.name for entry in os.scandir(self.path)]
        except FileNotFoundError:
            return []
        self._listed = (changed, time.monotonic())  # of before the listing: what came since is seen the next time
        return names

    def teachers(self) -> list[str]:
        """Names of the folders in here that are named like a teacher's fingerprint."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(e.name for e in os.scandir(self.path) if e.is_dir() and FINGERPRINT.fullmatch(e.name))
        return []

    def stamp(self, name: str, fresh: bool = False) -> tuple[int, int]:
        """Size in bytes and time in ns: another file under the same name has another stamp. FileNotFoundError.

        An object's is of the last listing, unless fresh.
        """
        stat = (self.path / name).stat()
        return stat.st_size, stat.st_mtime_ns

    def read(self, name: str, most: int | None = None) -> bytes:
        """The file, or its first `most` bytes; FileNotFoundError."""
        with (self.path / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Readers see the old file or the whole new one. Makes the folders."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, *parts)

    def open(self, name: str, key: str) -> Block:
        """The block, mapped; DamagedBlock, FileNotFoundError."""
        return open_block(self.path / name, key)

    def put(self, name: str, key: str, *parts: bytes | memoryview) -> Block:
        """Write a block, and map it."""
        self.write(name, *parts)
        return self.open(name, key)

    def set_aside(self, name: str) -> None:
        (self.path / name).replace(self.path / f"{name}.damaged")

    def clear_stale(self) -> None:
        """Delete what writers that were killed left behind."""
        remove_stale(self.path)

    def remove(self) -> None:
        """The folder and all that is in it."""
        shutil.rmtree(self.path)
