"""A cache of blocks on each node, shared by its processes, for storage that cannot be memory-mapped.

    <cache>/<storage's digest>/<teacher's fingerprint>/<block>

A cached block has its original's modification time, so it is stale if the original was rewritten. It is written
atomically, and its checksum is verified before it is used, once a day. The cache can be deleted at any time.
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
from raykd.logits.local import LocalFiles
from raykd.logits.object_store import ObjectFiles

log = logging.getLogger(__name__)

LOCK_SECONDS = 600.0  # longest wait for another process of this node that fetches the same block

_mapped: weakref.WeakSet[Block] = weakref.WeakSet()  # cached blocks that this process has mapped


class CachedFiles:
    """One teacher's blocks, cached. Not thread-safe."""

    def __init__(self, files: LocalFiles | ObjectFiles, folder: Path, root: Path, gb: float) -> None:
        """files: the originals.
        folder: for the cached copies of these files.
        root: the cache that contains the folder.
        gb: largest size of the cache, in 1e9 bytes.
        """
        self._files, self._folder, self._root, self._gb = files, folder, root, gb

    def open(self, name: str, key: str) -> Block:
        """Map a block from the cache, and fetch it first if needed. Raises DamagedBlock if the original is damaged."""
        stamp = self._files.stamp(name)  # taken before the fetch, so that a later rewrite of the original is noticed
        if block := self._open_copy(name, key, stamp):
            return block
        lock = self._folder / f".{name}.lock"
        with self._lock(lock):
            # Looked up again, because another process of this node can have fetched it in between.
            block = self._open_copy(name, key, stamp) or self._fetch(name, key, stamp)
            lock.unlink(missing_ok=True)  # thousands would pile up; at worst, another process fetches the block too
        return block

    def put(self, name: str, key: str, *parts: bytes | memoryview) -> Block:
        """Write a block to the storage and to the cache, so that it need not be fetched."""
        self._files.write(name, *parts, durable=False)  # as `LocalFiles.put`
        return self._keep(name, key, self._files.stamp(name), *parts)

    def _fetch(self, name: str, key: str, stamp: tuple[int, int]) -> Block:
        data = self._files.read(name)
        check_block(data, f"{self._files.where}/{name}", key)
        return self._keep(name, key, stamp, data)

    def _open_copy(self, name: str, key: str, stamp: tuple[int, int]) -> Block | None:
        """Map a cached block; None if it is not cached, stale or damaged."""
        path = self._folder / name
        try:
            stat = path.stat()
            # In whole seconds, because some file systems do not keep fractions of a time that is set.
            if (stat.st_size, int(stat.st_mtime)) != (stamp[0], stamp[1] // 10**9):
                return None
            block = open_block(path, key)
            os.utime(path, (time.time(), stat.st_mtime))  # last use, for file systems that do not record reads
        except FileNotFoundError:  # never fetched, or evicted
            return None
        except DamagedBlock as damage:
            log.warning("damaged local copy of a block, fetched again: %s", damage)
            return None
        _mapped.add(block)
        return block

    def _keep(self, name: str, key: str, stamp: tuple[int, int], *parts: bytes | memoryview) -> Block:
        path = self._folder / name
        with self._lock(self._root / ".room.lock"):  # no eviction between writing and mapping
            total = self._read_total() + stamp[0]
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write_total(total)  # first: if we are killed in between, it is too high rather than too low
                write_atomically(path, *parts, durable=False, mtime=stamp[1] // 10**9)
            except OSError as error:
                hint = "Lower logits.cache_gb to what the disk has, or name another folder as logits.cache"
                raise StoreError(f"logits.cache = {self._root}: {error}. {hint}") from error
            block = open_block(path, key)
            _mapped.add(block)
            if total > self._gb * 1e9:
                self._write_total(self._evict())
        return block

    def _write_total(self, total: float) -> None:
        (self._root / ".total").write_text(str(total))

    def _read_total(self) -> float:
        """An upper bound of the cache's size in bytes: as of the last scan, plus the blocks added since.

        Scanning thousands of files for every block would take longer than the fetch.
        """
        try:
            return float((self._root / ".total").read_text())
        except (FileNotFoundError, ValueError):  # never scanned, or a process was killed while it wrote
            return math.inf

    def _evict(self) -> int:
        """Delete the least recently used blocks of all teachers until the cache is within its limit; the bytes left.

        Blocks that this process has mapped are kept. Another process can have a deleted block mapped: on Linux the file
        stays intact for it, and its space is freed when the last map is closed.
        """
        limit, keep = self._gb * 1e9, {block.path for block in _mapped}
        cached = []
        for folder, _, names in os.walk(self._root):
            remove_stale(Path(folder))
            for path in (Path(folder, name) for name in names if name.endswith(".block")):
                with suppress(FileNotFoundError):  # somebody can delete files by hand, without the lock
                    stat = path.stat()
                    cached.append((stat.st_atime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in cached)
        for _, size, path in sorted(cached):
            if total <= limit:
                break
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= size
        if total > limit:
            needed = sum(size for _, size, path in cached if path in keep and path.parent != self._folder)
            needed += sum(self._files.stamp(n)[0] for n in self._files.names() or [] if n.endswith(".block"))
            raise StoreError(
                f"logits.cache_gb = {self._gb:g}: this process reads logits of at least {needed / 1e9:.3g} GB, "
                f"which do not fit in {self._root}. Set it to {math.ceil(needed / 1e8 + 1) / 10:g} or more, or set "
                f"logits.cache to a folder on a larger disk"
            )
        return total

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        with held(path, "read or write a local copy of logits", LOCK_SECONDS, StoreError):
            yield
