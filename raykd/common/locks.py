"""Locks on files, held by one process at a time. The operating system releases the lock of a process that dies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raykd.common.errors import UserError

log = logging.getLogger(__name__)
LOCK_SECONDS = 600.0  # longest wait for work that takes seconds or minutes
_SILENT_SECONDS = 2.0


@contextmanager
def held(path: Path, purpose: str, limit: float = LOCK_SECONDS, kind: type[UserError] = UserError) -> Iterator[None]:
    """Hold a lock. Waiting for another process is logged.

    path: the lock file.
    purpose: what the lock is needed for, after "to".
    limit: longest wait, in seconds.
    kind: error to raise after it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=min(_SILENT_SECONDS, limit))
    except Timeout:
        log.warning("waiting up to %.0f s to %s, because another process holds %s", limit, purpose, path)
        try:
            lock.acquire(timeout=limit)
        except Timeout:
            reason = f"another process still holds it after {limit:g} s"
            raise kind(f"{path}: {reason}, and it is needed to {purpose}. End that process") from None
    try:
        yield
    finally:
        lock.release()
