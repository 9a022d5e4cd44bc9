"""Write a file so that nobody ever sees half of it."""

import contextlib
import os
import secrets
import time
from pathlib import Path

STALE_SECONDS = 24 * 3600  # a temporary file this old has no writer any more


def write_atomically(path: Path, *parts: bytes | memoryview, durable: bool = True, mtime: float | None = None) -> None:
    """A reader sees the old file or the whole new one, also after a power cut unless durable=False.

    mtime: seconds since the epoch that the file is to bear instead of now.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # the same folder: one file system
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if mtime is not None:
            os.utime(temporary, (time.time(), mtime))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not durable:
        return
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stale(folder: Path) -> None:
    """Delete what writers that were killed left behind."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its writer has finished
            if left.stat().st_mtime < time.time() - STALE_SECONDS:
                left.unlink()
