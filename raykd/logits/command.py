"""`raykd logits ls | verify | rm`: what a store of logits holds, whether it is whole, what may go.

Without torch and Ray, so it answers at once. Originals are read, never the nodes' local copies.
"""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raykd.common.errors import ConfigError, StoreError
from raykd.common.hashing import fingerprint
from raykd.common.progress import Bars, bars
from raykd.config.load import load
from raykd.logits import LogitStore
from raykd.logits.block import HEAD_BYTES, DamagedBlock, check_block, rows_claimed
from raykd.logits.key import FORMAT, MANIFEST, read_manifest
from raykd.logits.local import Folder
from raykd.logits.object_store import Bucket, Unreachable
from raykd.logits.store import USES

THREADS = 8  # reads at once: an object store answers each after a while, and may answer many
PREFIX = 6  # characters of a fingerprint that name a teacher


@dataclass(frozen=True)
class Held:
    """What a store has of one teacher. `uses`: (ISO time, experiment), the last first."""

    fingerprint: str
    files: Folder | Bucket
    name: str
    dtype: str
    wrong: str | None  # with its manifest
    blocks: list[str]
    aside: int  # damaged blocks that were set aside
    size: int  # bytes, of both
    uses: list[tuple[str, str]]

    def __str__(self) -> str:
        return f"{self.name} {self.fingerprint[:12]}"

    def rows(self) -> int:
        """Rows that the blocks' headers say, unreadable ones left out; rows in two blocks count twice."""
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(self._rows, self.blocks))

    def _rows(self, name: str) -> int:
        try:
            return rows_claimed(self.files.read(name, HEAD_BYTES), name)
        except (DamagedBlock, FileNotFoundError):  # `verify` tells of it; it was set aside since it was listed
            return 0


def run(action: str, where: str, teachers: Sequence[str], console: Console, yes: bool = False) -> int:
    """The exit code: 0, or 1 if `verify` found damage. UserError for what cannot be done."""
    store = locate(where)
    try:
        held = [_held(store, name) for name in store.files().teachers()]
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


def locate(where: str) -> LogitStore:
    """A job's YAML, or the path or URI of a store."""
    if "://" in where:
        return LogitStore(where)
    if Path(where).is_dir():
        return LogitStore.at(where)
    if Path(where).is_file():
        return LogitStore.of(load(where))
    hint = "Name a job's YAML, such as jobs/digits.yaml, or the folder or URI of a store of logits"
    raise ConfigError("WHERE", where, "there is no such file or folder", hint)


def _held(store: LogitStore, folder: str) -> Held:
    files, wrong = store.files(folder), None
    name, dtype = "?", "?"
    try:
        if manifest := read_manifest(files):
            name, dtype = str(manifest["about"].get("name", "?")), str(manifest["key"].get("dtype", "?"))
            if manifest["format"] != FORMAT:
                wrong = f"{files.where}/{MANIFEST} is of format {manifest['format']!r} instead of {FORMAT}"
            elif fingerprint(manifest["key"]) != folder:
                wrong = f"{files.where}/{MANIFEST} does not belong to this folder: its key is that of another"
    except StoreError as error:
        if isinstance(error, Unreachable):
            raise
        wrong = str(error)
    names = files.names() or []
    blocks = sorted(n for n in names if n.endswith(".block"))
    aside = [n for n in names if n.endswith(".block.damaged")]
    size = sum(files.stamp(n)[0] for n in [*blocks, *aside])
    return Held(folder, files, name, dtype, wrong, blocks, len(aside), size, _uses(store, folder))


def _uses(store: LogitStore, folder: str) -> list[tuple[str, str]]:
    notes, found = store.files(f"{folder}/{USES}"), []
    for name in notes.names() or []:
        if name.endswith(".json"):
            try:
                note = json.loads(notes.read(name))
                found.append((str(note["at"]), str(note["by"])))
            except (ValueError, KeyError, TypeError):  # not one of ours; its name is all that there is to tell
                found.append(("", name.removesuffix(".json")))
    return sorted(found, reverse=True)


def _named(wanted: str, held: Sequence[Held]) -> Held:
    """The teacher of this name, or whose fingerprint begins so."""
    found = [t for t in held if t.name == wanted or (len(wanted) >= PREFIX and t.fingerprint.startswith(wanted))]
    if len(found) == 1:
        return found[0]
    if found:
        said = ", ".join(t.fingerprint[:12] for t in found)
        raise ConfigError("TEACHER", wanted, f"{len(found)} teachers are called so: {said}", "Give a fingerprint")
    words = [word for t in held for word in (t.name, t.fingerprint[:12])]
    near = get_close_matches(wanted, words, n=1, cutoff=0) or ["nothing"]
    hint = f"The nearest is {near[0]}; `raykd logits ls` shows all, a fingerprint needs {PREFIX} characters"
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
        "size": human(sum(t.size for t in teachers)),
        "used by": "",
        "last use (UTC)": "",
    }.items():
        right = column in ("rows", "blocks", "size")
        shape = {"no_wrap": True} if column != "used by" else {"overflow": "fold"}
        table.add_column(column, total, justify="right" if right else "left", **shape)
    for t, n in zip(teachers, rows, strict=True):
        blocks = f"{len(t.blocks):,}" + (f" (+{t.aside} damaged)" if t.aside else "")
        by = ", ".join(by for _, by in t.uses[:3]) + (f" and {len(t.uses) - 3} more" if len(t.uses) > 3 else "")
        last = t.uses[0][0][:16].replace("T", " ") if t.uses else ""
        name = t.name + (" (manifest!)" if t.wrong else "")
        table.add_row(name, t.fingerprint[:12], t.dtype, f"{n:,}", blocks, human(t.size), by, last)
    return table


def _damaged(teacher: Held, shown: Bars) -> bool:
    """Check every block against its checksum; what is damaged goes aside, and the next run computes it again."""

    def check(name: str) -> DamagedBlock | None:
        try:
            check_block(teacher.files.read(name), f"{teacher.files.where}/{name}", teacher.fingerprint)
        except DamagedBlock as damage:
            return damage
        except FileNotFoundError:  # another process has set it aside since it was listed
            pass
        return None

    found = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for done, (name, damage) in enumerate(zip(teacher.blocks, pool.map(check, teacher.blocks), strict=True), 1):
            if damage:
                found += 1
                shown.say(f"damaged: {damage}; {_put_aside(teacher, name)}")
            shown.update(str(teacher), done, len(teacher.blocks))
    if teacher.wrong:
        shown.say(f"manifest: {teacher.wrong}")
    whole = "whole" if not found else f"{found} damaged, computed again by the next run"
    shown.say(f"{teacher}: {len(teacher.blocks)} blocks, {human(teacher.size)}: {whole}")
    return found > 0 or teacher.wrong is not None


def _put_aside(teacher: Held, name: str) -> str:
    try:
        teacher.files.set_aside(name)
    except (OSError, Unreachable) as error:
        return f"it could not be set aside ({error})"
    return "set aside"


def _remove(teachers: Sequence[Held], store: LogitStore, console: Console, yes: bool) -> None:
    console.print(_table(teachers, f"to be removed from {store}"))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("--yes", "not given", "nobody can be asked: this is not a terminal", "Pass --yes")
        if input("remove? [y/N] ").strip().lower() not in ("y", "yes"):
            console.print("nothing was removed")
            return
    for teacher in teachers:
        teacher.files.remove()
        console.print(f"removed {teacher}, {human(teacher.size)}", highlight=False)


def human(size: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
