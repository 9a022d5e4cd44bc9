"""The lock that lets one process at a time train a job."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from raykd.common.errors import TrainingError
from raykd.common.output_files import LOCK
from raykd.plan.job import Job
from raykd.training.events import Event, Locked

HOLDER = "lock.holder"  # the file that says which process holds the lock


def acquire(lock: FileLock, job: Job, limit: float) -> Iterator[Event]:
    """Acquire the job's lock. Yields Locked once if it has to wait.

    limit: seconds. Raises TrainingError if nothing in the job's folder has changed for so long.
    """
    announced, state, since = False, 0.0, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=1)
            return
        except Timeout:
            now = last_written(job.folder)
            if now != state:
                state, since = now, time.monotonic()
            holder = job.folder / HOLDER
            other = holder.read_text() if holder.exists() else "another process"
            if time.monotonic() - since > limit:
                raise TrainingError(
                    f"{job.name}: {other} holds {lock.lock_file}, and has written nothing within ray.timeout_s = "
                    f"{limit:g} s. End it, or raise ray.timeout_s"
                ) from None
            if not announced:
                announced = True
                yield Locked(other, str(lock.lock_file))


def last_written(folder: Path) -> float:
    """The newest file's time of modification, without locks; 0.0 if there is none. Drafts can vanish at any time."""
    newest = 0.0
    for parent, _, names in os.walk(folder):  # not glob, which fails if a folder vanishes
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, 0.0 if name == LOCK else Path(parent, name).stat().st_mtime)
    return newest
