"""Atomic writes of files and folders, safe with concurrent writers, and quarantine of damaged ones.

Drafts have random names, because on a shared folder processes of two machines or containers can have the same id.
"""

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from raykd.common.errors import DiskFullError, disk_is_full

log = logging.getLogger(__name__)

STALE_SECONDS = 24 * 3600  # a draft this old has no writer any more


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # same folder, so same file system


@contextlib.contextmanager
def new_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a draft to write. It replaces `path` when the block ends, and is deleted if the block raises.

    durable: sync the draft before it is renamed, so that it also survives a power cut.

    Raises DiskFullError if the disk is full.
    """
    draft = _draft_of(path)
    try:
        yield draft
        if durable:
            _sync(draft)
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if disk_is_full(error):
            raise DiskFullError(path) from error
        raise
    if durable:
        _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. If another process has written `path` by then, that one stays and the draft is deleted."""
    draft = _draft_of(path)
    draft.mkdir(parents=True)
    try:
        yield draft
        for folder, _, names in os.walk(draft):
            for name in names:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        try:
            draft.rename(path)
        except OSError:
            if not path.exists():
                raise
            shutil.rmtree(draft)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if disk_is_full(error):
            raise DiskFullError(path) from error
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, *parts: bytes | memoryview, durable: bool = True, mtime: float | None = None) -> None:
    """Write a file from its parts. A reader sees either the old file or the complete new one.

    durable: as of `new_file`.
    mtime: modification time to set, in seconds since the epoch; None: now.
    """
    with new_file(path, durable) as draft:
        with draft.open("xb") as file:
            for part in parts:
                file.write(part)
        if mtime is not None:
            os.utime(draft, (time.time(), mtime))


def write_first(path: Path, content: bytes) -> bool:
    """Write a file, unless there is one by then, which can be damaged. Returns whether it was written.

    On a file system without hard links, of several processes at the same moment the last one's file stays.
    """
    if path.exists():
        return False
    draft = _draft_of(path)
    try:
        draft.write_bytes(content)
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if disk_is_full(error):
            raise DiskFullError(path) from error
        write_atomically(path, content)  # a file system without links
    finally:
        draft.unlink(missing_ok=True)
    return True


def quarantine(path: Path, reason: object) -> None:
    """Rename a damaged file or folder, so that it is written again, and warn. Another process can do so first."""
    renamed = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(renamed)
        log.warning("%s is damaged (%s): it is renamed to %s and written again", path, reason, renamed.name)


def remove_stale(folder: Path) -> None:
    """Delete the drafts that killed writers left behind."""
    for draft in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            if draft.stat().st_mtime < time.time() - STALE_SECONDS:
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink()


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _sync(path)
