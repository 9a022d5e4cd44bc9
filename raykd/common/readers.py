"""Marks of commands that read a store without a lock of their own, so that `raykd store prune` leaves what they read.

Any number of commands can read at once, so each locks a file of its own in `store/readers`. The operating system
releases the lock of a process that dies, and its files are removed later.
"""

import contextlib
import errno
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from raykd.common.output_files import STORE, TRAININGS

log = logging.getLogger(__name__)
READERS = "readers"
_STALE_SECONDS = 3600.0  # a younger file can be of a command that has not locked it yet


@dataclass(frozen=True)
class Reader:
    """A command that is running.

    command: for people, such as "raykd check digits".
    job: all that this job uses is held; "": none.
    item: the folder that is held, relative to the store ("trainings/0f94..."); "": none.
    """

    command: str
    job: str = ""
    item: str = ""


@contextmanager
def reading(store: Path, reader: Reader) -> Iterator[None]:
    """Mark that a command reads a store. One that cannot be written, because it is shared read-only, gets no mark.

    store: the folder `output/store`.
    """
    path = store / READERS / f"{uuid4().hex}.lock"
    lock, about = FileLock(path), path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=10)
        about.write_text(json.dumps(vars(reader)))
    except (OSError, Timeout) as error:
        log.info("%s: cannot mark that %s reads it: %s", store, reader.command, error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            about.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def reading_model(folder: Path | None, command: str) -> Iterator[None]:
    """The same for a model's folder, if it is one of a training in a store."""
    for parent in folder.absolute().parents if folder else ():
        if parent.parent.name == TRAININGS and parent.parent.parent.name == STORE:
            with reading(parent.parent.parent, Reader(command, item=f"{TRAININGS}/{parent.name}")):
                yield
            return
    yield


def readers(store: Path) -> list[Reader]:
    """The commands that are reading now. Removes the files of those that were killed."""
    found = []
    for path in sorted((store / READERS).glob("*.lock")):
        about = path.with_suffix(".json")
        with contextlib.suppress(OSError, ValueError, TypeError):  # it has just ended, or has not written it yet
            if is_locked(path):
                found.append(Reader(**json.loads(about.read_text())))
            elif path.stat().st_mtime < time.time() - _STALE_SECONDS:
                about.unlink(missing_ok=True)
                path.unlink()
    return found


def is_locked(lock: Path) -> bool:
    """Whether a process holds the lock file. Does not create it."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return _is_locked_by_others(lock)


def _is_locked_by_others(lock: Path) -> bool:
    """The same for a file that cannot be written: of another user, or in a folder that is shared read-only."""
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, or nobody can tell
        return True
    return False
