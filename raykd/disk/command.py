"""`raykd store ls | prune`: list what is in a store, and remove what is no longer needed."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raykd.common.errors import ConfigError, StoreError
from raykd.common.output_files import LOGITS, STORE
from raykd.common.screen import says_yes
from raykd.common.units import shown_size
from raykd.config.load import load
from raykd.disk.items import KINDS, Item, scan
from raykd.logits import LogitStore

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Filter:
    """Which items are meant: those to which everything given applies.

    kinds: of these kinds; (): of all.
    jobs: used by these jobs and by no other; (): by any.
    older_than: not used for so many seconds; None: any.
    unfinished: only what is no complete result.
    """

    kinds: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    older_than: float | None = None
    unfinished: bool = False

    def __call__(self, item: Item) -> bool:
        return (
            (not self.kinds or item.kind in self.kinds)
            and (not self.jobs or (bool(item.jobs) and set(item.jobs) <= set(self.jobs)))
            and (self.older_than is None or item.used <= time.time() - self.older_than)
            and (not self.unfinished or item.unfinished)
        )


def duration(text: str) -> float:
    """Seconds of a text such as 30d, 12h, 90m or 4w. Raises ConfigError."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())):
        reason = "it is no length of time"
        raise ConfigError("--older-than", text, reason, "Give minutes, hours, days or weeks: 90m, 12h, 30d, 4w")
    return float(match[1]) * _UNITS[match[2]]


def run_store(
    action: str, where: str, chosen: Filter, console: Console, yes: bool = False, dry_run: bool = False
) -> int:
    """Run `raykd store`; returns the exit code.

    action: ls or prune.
    where: a job's YAML, or an output folder.
    chosen: which items to list or remove.
    yes: remove without confirmation.
    dry_run: only say what would be removed.

    Raises UserError if the action is not possible.
    """
    output, logits = stores_of(where)
    if action == "prune" and chosen == Filter():
        hint = "Choose with --kind, --job, --older-than or --unfinished; `--older-than 0d` means everything"
        raise ConfigError("prune", where, "nothing says what to remove", hint)
    try:
        items = [item for item in scan(output, logits) if chosen(item)]
        if not items:
            console.print(f"nothing in {output / 'store'}" + ("" if chosen == Filter() else " to which this applies"))
        elif action == "ls":
            _show(items, f"{output / 'store'}", console)
        else:
            _prune(items, output, logits, chosen, console, yes, dry_run)
        return 0
    except OSError as error:
        raise StoreError(f"{output}: {error.strerror or error} ({error.filename})") from error


def stores_of(where: str) -> tuple[Path, LogitStore]:
    """The output folder of a job's YAML, or one that is named itself, and its storage of logits."""
    path = Path(where)
    if path.is_file():
        config = load(path)
        return Path(config.output), LogitStore.of(config)
    for output in (path, path.resolve().parent):  # the folder, or one in it: runs/NAME, runs/store
        if path.exists() and (output / STORE).is_dir():
            return output, LogitStore.at(output / STORE / LOGITS)
    reason = "there is no such file or folder" if not path.exists() else "it has no folder `store`"
    raise ConfigError("WHERE", where, reason, "Name a job's YAML, such as jobs/digits.yaml, or its output folder: runs")


def _prune(
    items: list[Item], output: Path, logits: LogitStore, chosen: Filter, console: Console, yes: bool, dry_run: bool
) -> None:
    free = [item for item in items if not item.held]
    if held := [item for item in items if item.held]:
        reasons = "; ".join(sorted({item.held for item in held}))
        console.print(f"kept, because they are in use: {_counted(held)} ({reasons})", highlight=False)
    if not free:
        console.print("nothing to remove")
        return
    _show(free, f"{'would be' if dry_run else 'to be'} removed from {output / 'store'}", console)
    if dry_run:
        console.print(f"would free {shown_size(sum(item.size for item in free))}; nothing was removed", highlight=False)
        return
    if not yes and not says_yes("remove?"):
        console.print("nothing was removed")
        return
    confirmed = {(item.kind, item.path) for item in free}
    freed, left = list[Item](), list[Item]()
    for item in scan(output, logits):  # again, because commands can have started since
        if (item.kind, item.path) not in confirmed or not chosen(item):
            continue
        if item.held:
            console.print(f"kept {item.kind} {item.name or item.path}: {item.held}")
            continue
        try:
            if item.remove():
                freed.append(item)
            else:
                console.print(f"kept {item.kind} {item.name or item.path}: a process uses it now")
        except OSError as error:  # such as of another user's file; the others can still be removed
            left.append(item)
            why = f"{error.strerror or error} ({error.filename})"
            console.print(f"could not remove {item.kind} {item.name or item.path}: {why}")
    console.print(f"removed {_counted(freed)}", highlight=False)
    if left:
        raise StoreError(f"could not remove {_counted(left)} from {output / 'store'}; see the lines above")


def _counted(items: Sequence[Item]) -> str:
    """Such as "46 trainings, 14 MB; 8 data, 704 kB"."""
    parts = []
    for kind in KINDS:
        if of := [item for item in items if item.kind == kind]:
            parts.append(f"{len(of)} {kind}, {shown_size(sum(item.size for item in of))}")
    return "; ".join(parts) or "nothing"


def _show(items: Sequence[Item], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("kind", "name", "id", "jobs", "size", "age", "used", "state"):
        right = column in ("size", "age", "used")
        whole = column not in ("name", "jobs", "state")
        table.add_column(column, justify="right" if right else "left", no_wrap=whole, overflow="fold")
    for item in items:
        jobs = ", ".join(item.jobs[:3]) + (f" and {len(item.jobs) - 3} more" if len(item.jobs) > 3 else "")
        state = f"{item.state} (in use)" if item.held else item.state
        short = Path(item.path).name[:12]
        times = [_ago(item.written), _ago(item.used)]
        table.add_row(item.kind, item.name, short, jobs, shown_size(item.size), *times, state)
    console.print(table)
    console.print(f"in all: {_counted(items)}: {shown_size(sum(item.size for item in items))}", highlight=False)


def _ago(at: float) -> str:
    """Such as "3 d"."""
    seconds = max(0.0, time.time() - at)
    unit = next(unit for unit in "dhm" if seconds >= _UNITS[unit] or unit == "m")
    return f"{seconds / _UNITS[unit]:.0f} {unit}"
