"""Local copies of blocks, shared by all processes of a node, for storages that are not to be mapped themselves.

    <cache>/<storage's digest>/<teacher's fingerprint>/<block>

A copy bears its original's time, so one whose original was written anew is known to be old. It appears whole,
and its checksum is read by every process that maps it. Copies come and go: only the storage is to be kept.
"""

import logging
import math
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raykd.common.atomic import remove_stale, write_atomically
from raykd.common.errors import StoreError
from raykd.common.locks import held
from raykd.logits.block import Block, DamagedBlock, check_block, open_block
from raykd.logits.local import Folder
from raykd.logits.object_store import Bucket

log = logging.getLogger(__name__)

LOCK_SECONDS = 600.0  # longest wait for another process of this node that fetches the same block

_mapped: weakref.WeakSet[Block] = weakref.WeakSet()  # copies that this process reads rows from


class Copies:
    """One teacher's. Not for several threads of one process."""

    def __init__(self, files: Folder | Bucket, folder: Path, root: Path, gb: float) -> None:
        """folder: for the copies of these files' blocks; root: the cache that it is in, of at most gb * 1e9 bytes."""
        self._files, self._folder, self._root, self._gb = files, folder, root, gb

    def open(self, name: str, key: str) -> Block:
        """The block, mapped from a copy; fetches it if there is none. DamagedBlock if the original is damaged."""
        stamp = self._files.stamp(name)  # of before the fetch: what replaces the original meanwhile has another
        if block := self._open_copy(name, key, stamp):
            return block
        lock = self._folder / f".{name}.lock"
        with self._lock(lock):  # another process of this node may have fetched it meanwhile
            block = self._open_copy(name, key, stamp) or self._fetch(name, key, stamp)
            lock.unlink(missing_ok=True)  # thousands would pile up; at worst who comes just now fetches, too
        return block

    def put(self, name: str, key: str, *parts: bytes | memoryview) -> Block:
        """Write a block to the storage, and its copy from here: it need not be fetched back."""
        self._files.write(name, *parts)
        return self._keep(name, key, self._files.stamp(name), *parts)

    def _fetch(self, name: str, key: str, stamp: tuple[int, int]) -> Block:
        data = self._files.read(name)
        check_block(data, f"{self._files.where}/{name}", key)
        return self._keep(name, key, stamp, data)

    def _open_copy(self, name: str, key: str, stamp: tuple[int, int]) -> Block | None:
        """None if there is no copy, or not one of the original as it is now, or a damaged one."""
        path = self._folder / name
        try:
            stat = path.stat()
            # In whole seconds: a local file system may not keep more of a time that it is given.
            if (stat.st_size, int(stat.st_mtime)) != (stamp[0], stamp[1] // 10**9):
                return None
            block = open_block(path, key)
            os.utime(path, (time.time(), stat.st_mtime))  # the last use, also where reading does not set it
        except FileNotFoundError:  # never fetched, or another process has just made room
            return None
        except DamagedBlock as damage:
            log.warning("damaged local copy of a block, fetched again: %s", damage)
            return None
        _mapped.add(block)
        return block

    def _keep(self, name: str, key: str, stamp: tuple[int, int], *parts: bytes | memoryview) -> Block:
        path = self._folder / name
        with self._lock(self._root / ".room.lock"):  # nobody makes room between the writing and the mapping
            total = self._known_total() + stamp[0]
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._know_total(total)  # before it is there: who is killed in between has told too much
                write_atomically(path, *parts, durable=False, mtime=stamp[1] // 10**9)
            except OSError as error:
                hint = "Lower logits.cache_gb to what the disk has, or name another folder as logits.cache"
                raise StoreError(f"logits.cache = {self._root}: {error}. {hint}") from error
            block = open_block(path, key)
            _mapped.add(block)
            if total > self._gb * 1e9:
                self._know_total(self._make_room())
        return block

    def _know_total(self, total: float) -> None:
        (self._root / ".total").write_text(str(total))

    def _known_total(self) -> float:
        """Bytes of all copies, by whoever has looked last and what was added since; at most so many are there.

        To look at thousands of files for every block would cost more than the fetching.
        """
        try:
            return float((self._root / ".total").read_text())
        except (FileNotFoundError, ValueError):  # nobody has looked, or a process was killed as it wrote
            return math.inf

    def _make_room(self) -> int:
        """Remove the least recently used blocks of any teacher until the cache is within its limit; the bytes left.

        Not those that this process reads. Others may be reading what is removed, and on Linux are not hurt: a
        removed file stays whole for who has mapped it, and its space comes free when the last of them ends.
        """
        limit, keep = self._gb * 1e9, {block.path for block in _mapped}
        found = []
        for folder, _, names in os.walk(self._root):
            remove_stale(Path(folder))
            for path in (Path(folder, name) for name in names if name.endswith(".block")):
                with suppress(FileNotFoundError):  # who cleans a cache by hand takes no lock
                    stat = path.stat()
                    found.append((stat.st_atime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                break
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= size
        if total > limit:
            needed = sum(size for _, size, path in found if path in keep and path.parent != self._folder)
            needed += sum(self._files.stamp(n)[0] for n in self._files.names() or [] if n.endswith(".block"))
            raise StoreError(
                f"logits.cache_gb = {self._gb:g}: this process reads logits of at least {needed / 1e9:.3g} GB, "
                f"which do not fit in {self._root}. Set it to {math.ceil(needed / 1e8 + 1) / 10:g} or more, or name "
                f"a larger disk as logits.cache"
            )
        return total

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """Held by one process of this node. The system releases it when that process dies."""
        with held(path, "read or write a local copy of logits", LOCK_SECONDS, StoreError):
            yield
