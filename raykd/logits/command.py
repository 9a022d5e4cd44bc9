"""`raykd logits ls | verify | rm`: list, verify and remove the logits in a store.

Imports neither torch nor Ray, so it starts fast. It reads the storage itself, not the nodes' caches.
"""

import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raykd.common.errors import ConfigError, StoreError
from raykd.common.hashing import fingerprint
from raykd.common.progress import Bars, bars
from raykd.common.screen import says_yes
from raykd.common.units import counted, shown_size
from raykd.config.load import load
from raykd.logits import LogitStore
from raykd.logits.block import HEAD_BYTES, DamagedBlock, check_block, rows_claimed
from raykd.logits.key import FORMAT, MANIFEST, read_manifest
from raykd.logits.local import LocalFiles
from raykd.logits.object_store import ObjectFiles, Unreachable
from raykd.logits.teacher_logits import USES

THREADS = 8  # concurrent reads, because an object store has a high latency
PREFIX = 6  # fewest characters of a fingerprint that name a teacher


@dataclass(frozen=True)
class Held:
    """What a store holds of one teacher."""

    fingerprint: str
    files: LocalFiles | ObjectFiles
    name: str
    dtype: str
    manifest_error: str | None
    blocks: list[str]
    quarantined: int  # damaged blocks
    size: int  # bytes of all blocks, and of the head
    uses: list[tuple[str, str]]  # (ISO time, experiment), the latest first
    written: float  # when its newest block was written, in seconds since the epoch; 0.0 if there is none
    head: str = ""  # the file of the head that turns hidden states into logits

    @property
    def last_use(self) -> float:
        """In seconds since the epoch; 0.0 if it is unknown."""
        with contextlib.suppress(ValueError, IndexError):
            return datetime.fromisoformat(self.uses[0][0]).timestamp()
        return 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.fingerprint[:12]}"

    def rows(self) -> int:
        """Number of rows according to the blocks' headers, without unreadable ones; rows in two blocks count twice."""
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(self._rows, self.blocks))

    def _rows(self, name: str) -> int:
        try:
            return rows_claimed(self.files.read(name, HEAD_BYTES), name)
        except (DamagedBlock, FileNotFoundError):  # `verify` reports it; or quarantined since it was listed
            return 0


def run_logits(action: str, where: str, teachers: Sequence[str], console: Console, yes: bool = False) -> int:
    """Run `raykd logits`; returns the exit code: 0, or 1 if `verify` found damage.

    action: ls, verify or rm.
    where: a job's YAML, or a store's path or URI.
    teachers: names or fingerprints; none: all.
    console: for the output.
    yes: remove without confirmation.

    Raises UserError if the action is not possible.
    """
    store = storage_of(where)
    try:
        held = held_logits(store)
        chosen = [_named(wanted, held) for wanted in dict.fromkeys(teachers)] or held
        if not held:
            console.print(f"no logits in {store} (a job's are in OUTPUT/store/logits)", highlight=False)
            return 0
        if action == "ls":
            console.print(_table(chosen, str(store)))
        elif action == "verify":
            with bars(console) as shown:
                return int(any([_damaged(teacher, shown) for teacher in chosen]))
        else:
            _remove(chosen, store, console, yes)
        return 0
    except OSError as error:
        raise StoreError(f"{store}: {error.strerror or error} ({error.filename})") from error


def storage_of(where: str) -> LogitStore:
    """The store of a job's YAML, or at a path or URI."""
    if "://" in where:
        return LogitStore(where)
    if Path(where).is_dir():
        return LogitStore.at(where)
    if Path(where).is_file():
        return LogitStore.of(load(where))
    hint = "Name a job's YAML, such as jobs/digits.yaml, or the folder or URI of a store of logits"
    raise ConfigError("WHERE", where, "there is no such file or folder", hint)


def held_logits(store: LogitStore) -> list[Held]:
    """What a store holds, by teacher."""
    return [_held(store, name) for name in store.files().teachers()]


def _held(store: LogitStore, folder: str) -> Held:
    files, manifest_error = store.files(folder), None
    name, dtype = "?", "?"
    try:
        if manifest := read_manifest(files):
            name, dtype = str(manifest["about"].get("name", "?")), str(manifest["key"].get("dtype", "?"))
            if manifest["format"] != FORMAT:
                manifest_error = f"{files.where}/{MANIFEST} has format {manifest['format']!r} instead of {FORMAT}"
            elif fingerprint(manifest["key"]) != folder:
                manifest_error = f"{files.where}/{MANIFEST} has the key of another folder"
    except StoreError as error:
        if isinstance(error, Unreachable):
            raise
        manifest_error = str(error)
    names = files.names() or []
    blocks = sorted(n for n in names if n.endswith(".block"))
    quarantined = [n for n in names if n.endswith(".block.damaged")]
    head = next((n for n in names if n.endswith(".safetensors")), "")
    stamps = [files.stamp(n) for n in [*blocks, *quarantined, *([head] if head else [])]]
    size, written = sum(size for size, _ in stamps), max((at for _, at in stamps), default=0) / 1e9
    uses = _uses(store, folder)
    return Held(folder, files, name, dtype, manifest_error, blocks, len(quarantined), size, uses, written, head)


def _uses(store: LogitStore, folder: str) -> list[tuple[str, str]]:
    notes, uses = store.files(f"{folder}/{USES}"), []
    for name in notes.names() or []:
        if name.endswith(".json"):
            try:
                note = json.loads(notes.read(name))
                uses.append((str(note["at"]), str(note["by"])))
            except (ValueError, KeyError, TypeError):  # not written by raykd; only its name can be shown
                uses.append(("", name.removesuffix(".json")))
    return sorted(uses, reverse=True)


def _named(wanted: str, held: Sequence[Held]) -> Held:
    """The teacher with this name, or with a fingerprint that starts with it."""
    matches = [t for t in held if t.name == wanted or (len(wanted) >= PREFIX and t.fingerprint.startswith(wanted))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = ", ".join(t.fingerprint[:12] for t in matches)
        reason = f"{len(matches)} teachers have this name: {choices}"
        raise ConfigError("TEACHER", wanted, reason, "Give a fingerprint")
    words = [word for t in held for word in (t.name, t.fingerprint[:12])]
    near = get_close_matches(wanted, words, n=1, cutoff=0) or ["nothing"]
    hint = f"Did you mean {near[0]}? `raykd logits ls` lists all; a fingerprint needs at least {PREFIX} characters"
    raise ConfigError("TEACHER", wanted, "the store holds no such teacher", hint)


def _table(teachers: Sequence[Held], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_footer=True)
    rows = [t.rows() for t in teachers]
    for column, total in {
        "teacher": f"{len(teachers)} in all",
        "fingerprint": "",
        "dtype": "",
        "rows": f"{sum(rows):,}",
        "blocks": f"{sum(len(t.blocks) for t in teachers):,}",
        "size": shown_size(sum(t.size for t in teachers)),
        "used by": "",
        "last use (UTC)": "",
    }.items():
        right = column in ("rows", "blocks", "size")
        shape = {"no_wrap": True} if column != "used by" else {"overflow": "fold"}
        table.add_column(column, total, justify="right" if right else "left", **shape)
    for t, n in zip(teachers, rows, strict=True):
        blocks = f"{len(t.blocks):,}" + (f" (+{t.quarantined} damaged)" if t.quarantined else "")
        by = ", ".join(by for _, by in t.uses[:3]) + (f" and {len(t.uses) - 3} more" if len(t.uses) > 3 else "")
        last = t.uses[0][0][:16].replace("T", " ") if t.uses else ""
        name = t.name + (" (manifest!)" if t.manifest_error else "")
        table.add_row(name, t.fingerprint[:12], t.dtype, f"{n:,}", blocks, shown_size(t.size), by, last)
    return table


def _damaged(teacher: Held, shown: Bars) -> bool:
    """Verify every block's checksum and quarantine damaged ones; whether the teacher has any damage."""

    def check(name: str) -> DamagedBlock | None:
        try:
            check_block(teacher.files.read(name), f"{teacher.files.where}/{name}", teacher.fingerprint)
        except DamagedBlock as damage:
            return damage
        except FileNotFoundError:  # another process has quarantined it since it was listed
            pass
        return None

    damaged = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for done, (name, damage) in enumerate(zip(teacher.blocks, pool.map(check, teacher.blocks), strict=True), 1):
            if damage:
                damaged += 1
                shown.say(f"damaged: {damage}; {_quarantine(teacher, name)}")
            shown.update(str(teacher), done, len(teacher.blocks))
    if teacher.manifest_error:
        shown.say(f"manifest: {teacher.manifest_error}")
    if teacher.head:
        from raykd.logits.heads import check_head  # imports torch

        try:
            check_head(teacher.files)
        except ValueError as damage:
            damaged += 1
            shown.say(f"damaged: {teacher.files.where}/{teacher.head}: {damage}; {_quarantine(teacher, teacher.head)}")
    result = f"{damaged} damaged, computed again by the next run" if damaged else "whole"
    shown.say(f"{teacher}: {counted(len(teacher.blocks), 'block')}, {shown_size(teacher.size)}: {result}")
    return damaged > 0 or teacher.manifest_error is not None


def _quarantine(teacher: Held, name: str) -> str:
    try:
        teacher.files.quarantine(name)
    except (OSError, Unreachable) as error:
        return f"it could not be quarantined ({error})"
    return "quarantined"


def _remove(teachers: Sequence[Held], store: LogitStore, console: Console, yes: bool) -> None:
    console.print(_table(teachers, f"to be removed from {store}"))
    if not yes and not says_yes("remove?"):
        console.print("nothing was removed")
        return
    for teacher in teachers:
        teacher.files.remove()
        console.print(f"removed {teacher}, {shown_size(teacher.size)}", highlight=False)
