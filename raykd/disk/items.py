"""Everything in a store, as items that can be listed and removed, and what a running command holds."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from raykd.common.atomic import STALE_SECONDS
from raykd.common.output_files import CHECKED, LOCK, LOGITS, PROOF, RESULT, STORE, TRAININGS
from raykd.common.readers import Reader, is_locked, readers
from raykd.common.units import counted
from raykd.common.uses import Use, read_uses
from raykd.logits import LogitStore
from raykd.logits.command import held_logits
from raykd.logits.local import FINGERPRINT, LocalFiles
from raykd.logits.object_store import ObjectFiles

KINDS = (TRAININGS, "data", LOGITS, CHECKED, "other")
_COMMAND_LOCK = ".lock"  # in an experiment's folder
_RUN = re.compile(r'"run": "([^"#]*)#([0-9a-f]{32})"')  # in a sweep's journal


@dataclass(frozen=True)
class Item:
    """One thing in the store.

    kind: one of KINDS.
    path: relative to the store; of logits, relative to their storage.
    name: for people, such as "vit-a"; "" if unknown.
    jobs: that use it, the latest first.
    size: in bytes.
    written: when its newest file was written, in seconds since the epoch.
    used: when a job last used it, likewise; if that is unknown, when it was written.
    state: whether it is complete, for people.
    unfinished: whether it is no complete result: a stopped training, a draft, a damaged file.
    held: why it must not be removed; "" if it can be.
    remove: deletes it; False if a process has begun to use it in the meantime.
    """

    kind: str
    path: str
    name: str
    jobs: tuple[str, ...]
    size: int
    written: float
    used: float
    state: str
    unfinished: bool
    held: str
    remove: Callable[[], bool]


def running_commands(output: Path, reading: Sequence[Reader]) -> dict[str, str]:
    """The jobs that a command is running or checking now, each with a text that names the command.

    reading: the commands that read the store.
    """
    running = {}
    for lock in output.glob(f"*/{_COMMAND_LOCK}"):
        if not is_locked(lock):
            continue
        text = f"a command of {lock.parent.name} is running"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not written yet
            holder = json.loads((lock.parent / f"{_COMMAND_LOCK}.json").read_text())
            text = f"raykd {holder['command']} {lock.parent.name} is running"
        running[lock.parent.name] = text
    for reader in reading:
        if reader.job:
            running.setdefault(reader.job, f"{reader.command} is running")
    return running


def scan(output: Path, logits: LogitStore) -> list[Item]:
    """Everything in `output/store` and in a job's storage of logits, by kind, the largest first."""
    store = output / STORE
    reading = readers(store)
    running = running_commands(output, reading)
    held = {reader.item: f"{reader.command} is running" for reader in reading if reader.item}
    uses = uses_of_journals(output) | read_uses(store)
    items = [*_trainings(store, uses, running, held), *_data(store, uses, running), *_logits(logits, running)]
    items += _others(store, running)
    return sorted(items, key=lambda item: (KINDS.index(item.kind), -item.size))


def _trainings(
    store: Path, uses: Mapping[str, list[Use]], running: Mapping[str, str], reading: Mapping[str, str]
) -> Iterator[Item]:
    """reading: by item, the command that reads it."""
    for folder in _folders(store / TRAININGS):
        if not FINGERPRINT.fullmatch(folder.name):
            continue
        complete = (folder / RESULT).is_file()
        state = "unfinished"
        if complete:
            state = "complete" if any(folder.glob("generation-*/model/config.json")) else "complete, scores only"
        of = uses.get(item := f"{TRAININGS}/{folder.name}", [])
        held = _held_by(of, running) or reading.get(item, "")
        held = held or ("a process is training it" if is_locked(folder / LOCK) else "")
        yield _item(TRAININGS, store, folder, of, state, not complete, held, partial(_remove_training, folder))


def _data(store: Path, uses: Mapping[str, list[Use]], running: Mapping[str, str]) -> Iterator[Item]:
    # A command that has just started reads rows before it has noted that, so while one is running, all rows stay.
    held = next(iter(running.values()), "")
    for folder in _folders(store / "data"):
        if _is_other(folder.name):
            continue
        complete = (folder / PROOF).is_file()
        of = uses.get(f"data/{folder.name}", [])
        yield _item("data", store, folder, of, "complete" if complete else "unfinished", not complete, held)


def _logits(store: LogitStore, running: Mapping[str, str]) -> Iterator[Item]:
    for teacher in held_logits(store):
        jobs = tuple(by for _, by in teacher.uses)
        held = next((running[job] for job in jobs if job in running), "")
        used = max(teacher.last_use, teacher.written)
        state = counted(len(teacher.blocks), "block") + (f", {teacher.quarantined} damaged" * bool(teacher.quarantined))
        name, path, remove = teacher.name, teacher.fingerprint, partial(_remove_logits, teacher.files)
        yield Item("logits", path, name, jobs, teacher.size, teacher.written, used, state, False, held, remove)


def _others(store: Path, running: Mapping[str, str]) -> Iterator[Item]:
    busy = next(iter(running.values()), "")
    for path in _folders(store):
        if path.name in ("checked", "flags", "tokenizers"):
            kind = CHECKED if path.name == CHECKED else "other"
            state = {"checked": "passed checks, small results", "tokenizers": "trained here"}.get(path.name, "")
            yield _item(kind, store, path, [], state, False, busy)
        elif path.name.startswith("probe-") or _is_other(path.name):
            yield _other(store, path)  # of `raykd check --cluster`, if it was killed
    for kind in (TRAININGS, "data"):
        yield from (_other(store, path) for path in _folders(store / kind) if _is_other(path.name))


def _is_other(name: str) -> bool:
    return name.startswith(".") or ".damaged-" in name


def _other(store: Path, path: Path) -> Item:
    damaged = ".damaged-" in path.name
    item = _item("other", store, path, [], "damaged, quarantined" if damaged else "left by a killed command", True, "")
    if not damaged and item.written > time.time() - STALE_SECONDS:
        return _item("other", store, path, [], "draft", True, "it was written within a day")
    return item


def _item(
    kind: str,
    store: Path,
    path: Path,
    uses: list[Use],
    state: str,
    unfinished: bool,
    held: str,
    remove: Callable[[], bool] | None = None,
) -> Item:
    size, written = _size(path)
    name = uses[0].name if uses else ""
    jobs, used = tuple(use.by for use in uses), max([written, *(use.at for use in uses)])
    where = str(path.relative_to(store))
    return Item(
        kind, where, name, jobs, size, written, used, state, unfinished, held, remove or (lambda: _remove(path))
    )


def _folders(parent: Path) -> list[Path]:
    """The subfolders, without files, which are locks."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path for path in parent.iterdir() if path.is_dir())
    return []


def _size(path: Path) -> tuple[int, float]:
    """Bytes of all files, and when the newest one was written. Files and folders can vanish at any time."""
    size, newest = 0, 0.0
    for folder, _, names in os.walk(path):  # unlike rglob, it passes over a folder that is gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(folder, name))
                if name != LOCK:
                    size, newest = size + status.st_size, max(newest, status.st_mtime)
    with contextlib.suppress(FileNotFoundError):
        newest = newest or path.stat().st_mtime
    return size, newest


def _held_by(uses: list[Use], running: Mapping[str, str]) -> str:
    return next((running[use.by] for use in uses if use.by in running), "")


def _remove_training(folder: Path) -> bool:
    """Remove it under its lock, so that no process begins to train it at the same time."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return _remove(folder)
    except Timeout:
        return False


def _remove_logits(files: LocalFiles | ObjectFiles) -> bool:
    files.remove()
    return True


def _remove(path: Path) -> bool:
    """Rename it first, so that no process finds half of it."""
    # A name of its own, because a command that was killed here has left a folder.
    gone = path.with_name(f".{path.name}.{uuid4().hex[:8]}.removed.tmp")
    path.rename(gone)
    shutil.rmtree(gone)
    return True


def uses_of_journals(output: Path) -> dict[str, list[Use]]:
    """What the journals of sweeps know of trainings. Earlier versions of raykd wrote no other notes."""
    uses: dict[str, list[Use]] = {}
    for journal in output.glob("*/sweep*.jsonl"):
        for name, fingerprint in _RUN.findall(journal.read_text(errors="replace")):
            uses[f"{TRAININGS}/{fingerprint}"] = [Use(journal.parent.name, 0.0, name)]
    return uses
