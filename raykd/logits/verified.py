"""Which files have been verified on this node today, so that many trials do not each read all logits to verify them.

    <temporary folder>/raykd-<user>/verified-<day>      records of 16 bytes

A record is a hash of the kernel's boot id and of the file's device, inode, size, and times of its last write and last
change, of which no program can set the second. So a file that was written to afterwards is verified again. Records last
a day, or until the node reboots, because a power cut can damage files; no other user can write them. Damage without a
write, by a failing disk, is found the next day, or at once by `raykd logits verify`.
"""

import functools
import hashlib
import os
import time
from pathlib import Path

from raykd.common.private_folder import private_folder

RECORD = 16


class VerifiedFiles:
    """The records of this node and user, read when they are first asked for and again when others were added."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._path, self._read = Path(), 0  # bytes that have been read

    def __contains__(self, file: os.stat_result) -> bool:
        record = _record(file)
        if record not in self._known:
            self._load()
        return record in self._known

    def add(self, file: os.stat_result) -> None:
        record = _record(file)
        self._known.add(record)
        if path := _file_of_today():
            with path.open("ab") as records:  # so short a write is not mixed with that of another process
                records.write(record)

    def _load(self) -> None:
        if (path := _file_of_today()) is None:
            return
        if path != self._path:
            self._path, self._read = path, 0
        try:
            with path.open("rb") as records:
                records.seek(self._read)
                data = records.read()
        except FileNotFoundError:
            return
        whole = len(data) - len(data) % RECORD
        self._known |= {data[at : at + RECORD] for at in range(0, whole, RECORD)}
        self._read += whole


def _record(file: os.stat_result) -> bytes:
    facts = (_boot_id(), file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    return hashlib.blake2b(repr(facts).encode(), digest_size=RECORD).digest()


@functools.cache
def _boot_id() -> str:
    """The kernel's boot id; "" where there is none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _file_of_today() -> Path | None:
    """None if there is no folder of this user alone: then nothing is shared between processes."""
    try:
        folder = private_folder()
        today = folder / f"verified-{int(time.time() // 86400)}"
        if not today.exists():
            for old in folder.glob("verified-*"):
                old.unlink(missing_ok=True)
    except OSError:  # no room, or a file system that cannot be written to
        return None
    return today
