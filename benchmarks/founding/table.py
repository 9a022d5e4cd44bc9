"""What the trainings show: scores, gains, their intervals and verdicts, as Markdown and as JSON."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from founding.known import Known
from founding.trainings import CONTROLS, METHODS, TEACHERS, Setting, seeds_of
from raykd.common.units import counted
from raykd.reports.statistics import compare, corrected_level

LEVEL = 0.95
Interval = tuple[float, float, float]  # mean, low, high
WEIGHTED = "weighted, W searched"
TAUGHT = (*METHODS, WEIGHTED)


@dataclasses.dataclass
class Table:
    """The scores of one setting: by row (sets, seeds, test rows), of a teacher (sets, 1, test rows)."""

    setting: str
    scores: dict[str, np.ndarray]
    chosen: dict[str, list[float]]  # the W of each set, or of each seed, by row
    changed: dict[str, float]
    by_w: dict[str, dict[float, np.ndarray]]
    contexts: list[str] | None = None  # of the test rows, if some depend on each other

    @property
    def gains(self) -> dict[tuple[str, str], str]:
        """What a row is compared with, by the row and the column."""
        found = {}
        for row in self.scores:
            kind, _, folds = row.partition(", folds ")
            ends = f", folds {folds}" if folds else ""
            if kind in TAUGHT or kind in CONTROLS or kind == "ensemble":
                found[row, "over_best_teacher"] = f"best teacher{ends}"
            if kind in TAUGHT and folds:
                found[row, "over_single_teacher"] = "best teacher"
            if kind in TAUGHT and "KD" not in kind:
                found[row, "over_kd"] = f"KD from the ensemble{ends}"
        return found

    def gain(self, row: str, column: str) -> Interval:
        """With an interval that is wide enough for all gains of the setting to hold at once."""
        difference = self.scores[row] - self.scores[self.gains[row, column]]
        return interval(difference, self.contexts, corrected_level(len(self.gains), LEVEL))


def assemble(setting: Setting, sets: Sequence[int], seeds: int, known: Known) -> Table:
    table = Table(setting.name, {}, {}, {}, {})
    for row in CONTROLS:
        table.scores[row] = _stack(
            known, [[f"{setting.control_key} | {row} | seed {s}" for s in seeds_of(n, seeds)] for n in sets]
        )
    for folds in (1, setting.folds):
        ends = "" if folds == 1 else f", folds {folds}"
        at = [f"{setting.key} | set {n + 1} | folds {folds}" for n in sets]
        best = [max(range(TEACHERS), key=lambda i, a=a: known.validation(f"{a} | teacher-{i + 1}")) for a in at]  # type: ignore[misc]
        for i in range(TEACHERS):
            table.scores[f"teacher-{i + 1}{ends}"] = _stack(known, [[f"{a} | teacher-{i + 1}"] for a in at])
        table.scores[f"best teacher{ends}"] = _stack(
            known, [[f"{a} | teacher-{b + 1}"] for a, b in zip(at, best, strict=True)]
        )
        table.scores[f"ensemble{ends}"] = _stack(known, [[f"{a} | ensemble"] for a in at])
        table.contexts = known.lines[f"{at[0]} | ensemble"].get("contexts")
        table.changed[f"W{ends}"] = float(np.mean([known.lines[f"{a} | ensemble"]["changed"] for a in at]))
        for row in METHODS:
            names = [[f"{a} | {row} | seed {s}" for s in seeds_of(n, seeds)] for n, a in zip(sets, at, strict=True)]
            table.scores[row + ends] = _stack(known, names)
        by_w: dict[float, list[list[str]]] = {}
        for w in (*setting.ws, 1.0):
            by_w[w] = []
            for n, a in zip(sets, at, strict=True):
                row = f"W = {w:g}" if known.lines[f"{a} | ensemble"]["changed"] and w < 1 else "KD from the ensemble"
                by_w[w].append([f"{a} | {row} | seed {s}" for s in seeds_of(n, seeds)])
        table.by_w[ends] = {w: _stack(known, names) for w, names in by_w.items()}
        table.scores[WEIGHTED + ends], table.chosen[WEIGHTED + ends] = search_w(by_w, table.by_w[ends], known)
    return table


def search_w(
    names: dict[float, list[list[str]]], test: dict[float, np.ndarray], known: Known
) -> tuple[np.ndarray, list[float]]:
    """(sets, seeds, rows) of the searched W, and the W's that were chosen.

    The W of a set is chosen on the validation scores of the other sets; with one set, that of a seed on other seeds'.
    """
    validation = {w: np.array([[known.validation(n) for n in one] for one in sets]) for w, sets in names.items()}
    sets, seeds, _ = test[1.0].shape
    found, chosen = np.empty_like(test[1.0]), []
    for i in range(sets if sets > 1 else seeds):
        where = (i, slice(None)) if sets > 1 else (0, slice(i, i + 1))

        def elsewhere(w: float, i: int = i) -> tuple[float, ...]:
            values = validation[w] if sets > 1 else validation[w].swapaxes(0, 1)
            return tuple(np.round(np.delete(values, i, 0).mean((0, 1)), 9)) if len(values) > 1 else (0.0,)

        w = max(validation, key=lambda w: (*elsewhere(w), w))  # of equal ones, the nearest to KD
        found[where] = test[w][where]
        chosen.append(w)
    return found, chosen


def _stack(known: Known, names: list[list[str]]) -> np.ndarray:
    return np.array([[known.test(name) for name in one] for one in names])


def interval(scores: np.ndarray, contexts: Sequence[str] | None = None, level: float = LEVEL) -> Interval:
    """Mean and interval of (sets, seeds, rows) of scores or differences, as `founding_table.py` describes it."""
    sets = scores.mean(1) if len(scores) > 1 else scores[0]  # with one set, the interval is about this set
    spread, tail = compare({"": sets}, contexts).spread[""], (1 + level) / 2
    clusters = len(spread.influence)
    rows = float((spread.influence**2).sum()) * clusters / (clusters - 1)
    squared = float(t.ppf(tail, clusters - 1)) ** 2 * max(0.0, rows - spread.within / spread.seeds)
    if spread.freedom:
        squared += float(t.ppf(tail, spread.freedom)) ** 2 * spread.between / spread.seeds
    mean, half = float(scores.mean()), math.sqrt(squared)
    return mean, mean - half, mean + half


def verdict(low: float, high: float, shown: str, opposite: str) -> str:
    return shown if low > 0 else opposite if high < 0 else "not shown"


def lines_of(table: Table) -> tuple[list[str], dict[str, Any]]:
    """The setting as Markdown, and its part of the JSON object."""
    sets, seeds, rows = table.scores["fine-tuning"].shape
    fold_rows = [name for name in table.scores if ", folds " in name]
    ends = ", folds " + fold_rows[0].rsplit(" ", 1)[1]
    lines = [
        f"### {table.setting}",
        "",
        f"{counted(sets, 'set')} of {TEACHERS} teachers, {seeds} students of each set and row, {rows} test rows. "
        f"W changes {table.changed['W']:.2%} of the labelled decisions without folds, "
        f"{table.changed['W' + ends]:.2%} with.",
        "",
        "| | test score (95%) | over its best teacher | | over the best teacher without folds | over KD from the "
        "same ensemble |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    found: dict[str, Any] = {"sets": sets, "seeds": seeds, "changed": table.changed, "W": table.chosen, "rows": {}}
    for row, scores in table.scores.items():
        mean, low, high = interval(scores, table.contexts)
        cells = [f"{100 * mean:.2f} ({100 * low:.1f} to {100 * high:.1f})"]
        entry: dict[str, Any] = {"test": mean, "interval": [low, high]}
        for column in ("over_best_teacher", "over_single_teacher", "over_kd"):
            cells.append("")
            if (row, column) in table.gains:
                gain, below, above = entry[column] = table.gain(row, column)
                cells[-1] = f"{100 * gain:+.2f} ({100 * below:+.2f} to {100 * above:+.2f})"
            if column == "over_best_teacher":
                taught = row.partition(", folds ")[0] in TAUGHT
                entry["verdict"] = verdict(below, above, "beats it", "is below it") if taught else ""
                cells.append(entry["verdict"])
        found["rows"][row] = entry
        lines.append(f"| {row} | {' | '.join(cells)} |")
    chosen = "; ".join(f"{row}: {', '.join(f'{w:g}' for w in ws)}" for row, ws in table.chosen.items())
    return [*lines, "", f"Chosen W: {chosen}.", ""], found


def summary(tables: dict[str, Any]) -> list[str]:
    """All settings as one Markdown table: what W changes and gains, beside what annealing does."""

    def gain(rows: dict[str, Any], row: str, key: str) -> str:
        value, low, high = (100 * part for part in rows[row][key])
        return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"

    lines = [
        "| setting | W changes | weighted over its best teacher, without folds | with folds | weighted over KD, with "
        "folds | annealing over KD, with folds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, table in tables.items():
        rows, [plain, folds] = table["rows"], (key.removeprefix("W") for key in table["changed"])
        cells = [
            f"{table['changed']['W' + plain]:.1%}, with folds {table['changed']['W' + folds]:.1%}",
            gain(rows, WEIGHTED + plain, "over_best_teacher"),
            gain(rows, WEIGHTED + folds, "over_best_teacher"),
            gain(rows, WEIGHTED + folds, "over_kd"),
            gain(rows, "annealing" + folds, "over_kd"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def answer(tables: dict[str, Any]) -> str:
    """The claim under test, against the settings' verdicts."""
    above, lifted = [], []
    for name, table in tables.items():
        rows = table["rows"]
        for row in (row for row in rows if row.startswith(WEIGHTED)):
            others = [rows[other + row.removeprefix(WEIGHTED)]["verdict"] for other in METHODS]
            if rows[row]["verdict"] == "beats it" and "beats it" not in others:
                above.append(f"{name} ({row})")
            if rows[row]["over_kd"][1] > 0:
                lifted.append(f"{name} ({row})")
    text = "weighted alone is shown to beat its best teacher in: " + ("; ".join(above) or "no setting")
    return f"{text}. Weighted is shown to be better than KD in: {'; '.join(lifted) or 'no setting'}."
