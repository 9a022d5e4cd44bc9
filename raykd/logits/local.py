"""The files of one teacher's logits in a local or NFS folder, where blocks are memory-mapped in place."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from raykd.common.atomic import remove_stale, write_atomically
from raykd.logits.block import Block, open_block

# A student that waits for teachers checks 20 times a second. Listing an object store is a request that costs time and
# money, so it is listed again only after this time. Listing a folder of thousands of blocks takes milliseconds. Its
# modification time shows whether files were added or removed, but on some file systems with a delay, so this applies
# to folders too.
RELIST_SECONDS = 1.0

FINGERPRINT = re.compile(r"[0-9a-f]{32}")


class LocalFiles:
    """A local or NFS folder. Raises the file system's OSErrors."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._listed = (-1, 0.0)  # the folder's modification time and our clock, at the last listing

    def names(self, always: bool = True) -> list[str] | None:
        """Names of the files; None if they were listed within RELIST_SECONDS and the folder has not changed.

        always: list them in any case.
        """
        try:
            changed = self.path.stat().st_mtime_ns
            if not always and self._listed[0] == changed and time.monotonic() - self._listed[1] < RELIST_SECONDS:
                return None
            names = [entry.name for entry in os.scandir(self.path)]
        except FileNotFoundError:
            return []
        self._listed = (changed, time.monotonic())  # from before the listing, so that later files are seen next time
        return names

    def teachers(self) -> list[str]:
        """Names of the subfolders that are named like a teacher's fingerprint."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(e.name for e in os.scandir(self.path) if e.is_dir() and FINGERPRINT.fullmatch(e.name))
        return []

    def stamp(self, name: str, fresh: bool = False) -> tuple[int, int]:
        """Size in bytes and modification time in ns, which identify a file's version. Raises FileNotFoundError.

        fresh: in an object store, request it instead of using the last listing.
        """
        stat = (self.path / name).stat()
        return stat.st_size, stat.st_mtime_ns

    def read(self, name: str, most: int | None = None) -> bytes:
        """The file, or its first `most` bytes. Raises FileNotFoundError."""
        with (self.path / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    def write(self, name: str, *parts: bytes | memoryview, durable: bool = True) -> None:
        """Write a file atomically. Creates its folders.

        durable: whether it also survives a power cut.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, *parts, durable=durable)

    def open(self, name: str, key: str) -> Block:
        """Map a block. Raises DamagedBlock or FileNotFoundError."""
        return open_block(self.path / name, key)

    def put(self, name: str, key: str, *parts: bytes | memoryview) -> Block:
        """Write a block, and map it. A power cut can damage it, which its checksum shows: then it is computed again.

        On a shared disk, waiting for each block to be durable can take longer than a GPU needs to compute the next one.
        """
        self.write(name, *parts, durable=False)
        return self.open(name, key)

    def quarantine(self, name: str) -> None:
        (self.path / name).replace(self.path / f"{name}.damaged")

    def clear_stale(self) -> None:
        """Delete the drafts that killed writers left behind."""
        remove_stale(self.path)

    def remove(self) -> None:
        """Delete the folder and everything in it."""
        shutil.rmtree(self.path)
