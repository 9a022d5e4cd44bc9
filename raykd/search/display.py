"""The progress of a sweep: a live table on a terminal, plain lines in a job's log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raykd.common.metrics import higher_is_better
from raykd.common.progress import Bars
from raykd.common.units import counted
from raykd.search.journal import Trial
from raykd.search.space import Setting
from raykd.search.state import SweepState


class SweepDisplay(Bars):
    """Shows the trials of a `SweepState`; events of single trainings are not shown."""

    def __init__(self, console: Console, state: SweepState, metric: str, live: Live | None) -> None:
        super().__init__(console, None)
        self.state, self.metric, self.live = state, metric, live
        self._ends: list[float] = []  # when each trial has ended that was trained by this command
        self.show()

    def update(self, name: str, done: float, total: float, note: str = "", news: bool = True) -> None:
        if name.startswith("logits of"):  # the pool's
            if self.live is None:
                super().update(name, done, total, note, news)
            else:
                self.show(f"{name}: {done:g}/{total:g} {note}")

    def changed(self, trial: Trial) -> None:
        if trial.ended and trial.name not in self.state.reused:
            self._ends.append(time.monotonic())
        if self.live is not None:
            self.show()
        elif trial.ended:
            self.console.print(self._line(trial), highlight=False, soft_wrap=True)

    def show(self, note: str = "") -> None:
        if self.live is not None:
            self.live.update(Group(self._table(), Text(note or self._left())))

    def _line(self, trial: Trial) -> str:
        ended = sum(t.ended for t in self.state.trials)
        outcome = (
            f"{self.metric} {higher_is_better(self.metric, trial.score):.4g}"
            if trial.score is not None
            else trial.state
        )
        if trial.state == "pruned":
            outcome += ", pruned by the scheduler"
        if trial.state == "failed":
            outcome = f"FAILED: {trial.reason}"
        best = self.state.best(self.state.arms[trial.arm])
        mark = " (the best of its method so far)" if best is trial else ""
        setting = setting_text(trial.setting)
        return f"[{ended}/{self.state.total}] {trial.name}: {outcome}{mark}; {setting}; {self._left()}"

    def _left(self) -> str:
        ended = sum(t.ended for t in self.state.trials)
        if self.state.over:
            return f"no more trials: {self.state.over}"
        if len(self._ends) < 2:  # the first one has waited for Ray, and perhaps for teachers
            return f"{counted(self.state.total - ended, 'trial')} left"
        each = (time.monotonic() - self._ends[0]) / (len(self._ends) - 1)
        seconds = each * (self.state.total - ended)
        return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"

    def _table(self) -> Table:
        table = Table(title=f"best validation {self.metric} by method", title_justify="left")
        for column in ("method", "trials", "running", "best", "setting"):
            table.add_column(column, justify="left" if column in ("method", "setting") else "right", no_wrap=True)
        for name, arm in self.state.arms.items():
            trials, best = self.state.of(arm), self.state.best(arm)
            table.add_row(
                Text(name, "dim") if arm.control else name,
                f"{sum(t.ended for t in trials)}/{self.state.planned[name]}",
                str(sum(t.state == "running" for t in trials) or ""),
                f"{higher_is_better(self.metric, best.score):.4f}" if best and best.score is not None else "",
                setting_text(best.setting) if best else "",
            )
        return table


def setting_text(setting: Setting) -> str:
    """Keys without their sections: `alpha=0.5 learning_rate=0.001`."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items()) or "its preset"


@contextmanager
def open_display(console: Console, state: SweepState, metric: str) -> Iterator[SweepDisplay]:
    if not console.is_terminal:
        yield SweepDisplay(console, state, metric, None)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield SweepDisplay(console, state, metric, live)
