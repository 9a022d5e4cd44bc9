"""Progress of running work: bars on a terminal, plain lines in a job's log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 10.0  # without a terminal: shortest time between two lines of a bar that has no news


class Bars:
    """One bar for each training or teacher pass, by name."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self.console, self.progress = console, progress
        self._bars: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}  # when each bar's last line was printed

    def update(self, name: str, done: float, total: float, note: str = "", news: bool = True) -> None:
        """Show progress.

        name: the bar's.
        done: so far, of `total`.
        note: text after the bar.
        news: in a job's log, print the note at once; otherwise at most every _LINE_SECONDS.
        """
        if self.progress is not None:
            if name not in self._bars:
                self._bars[name] = self.progress.add_task(name, total=total, note="")
            self.progress.update(self._bars[name], completed=done, total=total)
            if note:
                self.progress.update(self._bars[name], note=note)
            return
        now = time.monotonic()
        if (note and news) or done >= total or now - self._printed.get(name, -_LINE_SECONDS) >= _LINE_SECONDS:
            self._printed[name] = now
            self.console.print(f"{name}: {done:g}/{total:g} {note}".rstrip(), highlight=False)

    def ended(self, name: str, note: str) -> None:
        """A training has ended, perhaps with a bar that is not full. note: its result."""

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)


class Count(Bars):
    """One bar for many trainings: how many of them have ended."""

    def __init__(self, bars: Bars, title: str, total: int) -> None:
        super().__init__(bars.console, bars.progress)
        self.title, self.total, self._ended = title, total, set[str]()
        if total:
            super().update(title, 0, total)

    def update(self, name: str, done: float, total: float, note: str = "", news: bool = True) -> None:
        """Single trainings are not shown until they end."""

    def ended(self, name: str, note: str) -> None:
        self._ended.add(name)
        super().update(self.title, len(self._ended), self.total, f"{name}: {note}")


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    if not console.is_terminal:
        yield Bars(console, None)
        return
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(console, progress)
