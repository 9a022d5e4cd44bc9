"""What the trainings show: scores, gains, their intervals and verdicts, as Markdown and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

from founding.known import Known
from founding.trainings import CONTROLS, METHODS, TEACHERS, WS, Setting, seeds_of
from raykd.common.units import counted

RESAMPLES = 4000
LEVEL = 0.95
WEIGHTED = "weighted, W searched"
TAUGHT = (*METHODS, WEIGHTED)
GAIN_LEVEL = 1 - (1 - LEVEL) / (2 * len(TAUGHT))  # of a gain's interval, so that all of a setting hold at once


@dataclasses.dataclass
class Table:
    """The scores of one setting: by row (sets, seeds, test rows), of a teacher (sets, 1, test rows)."""

    setting: str
    scores: dict[str, np.ndarray]
    chosen: dict[str, list[float]]  # the W of each set, or of each seed, by row
    changed: dict[str, float]
    by_w: dict[str, dict[float, np.ndarray]]


def assemble(setting: Setting, sets: Sequence[int], seeds: int, known: Known) -> Table:
    table = Table(setting.name, {}, {}, {}, {})
    for row in CONTROLS:
        start = setting.name.split(", ")[0]
        table.scores[row] = _stack(known, [[f"{start} | {row} | seed {s}" for s in seeds_of(n, seeds)] for n in sets])
    for folds in (1, setting.folds):
        ends = "" if folds == 1 else f", folds {folds}"
        at = [f"{setting.name} | set {n + 1} | folds {folds}" for n in sets]
        best = [max(range(TEACHERS), key=lambda i, a=a: known.validation(f"{a} | teacher-{i + 1}")) for a in at]  # type: ignore[misc]
        for i in range(TEACHERS):
            table.scores[f"teacher-{i + 1}{ends}"] = _stack(known, [[f"{a} | teacher-{i + 1}"] for a in at])
        table.scores[f"best teacher{ends}"] = _stack(
            known, [[f"{a} | teacher-{b + 1}"] for a, b in zip(at, best, strict=True)]
        )
        table.scores[f"ensemble{ends}"] = _stack(known, [[f"{a} | ensemble"] for a in at])
        table.changed[f"W{ends}"] = float(np.mean([known.lines[f"{a} | ensemble"]["changed"] for a in at]))
        for row in METHODS:
            names = [[f"{a} | {row} | seed {s}" for s in seeds_of(n, seeds)] for n, a in zip(sets, at, strict=True)]
            table.scores[row + ends] = _stack(known, names)
        by_w: dict[float, list[list[str]]] = {}
        for w in (*WS, 1.0):
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


def interval(scores: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean and interval of (sets, seeds, rows) of scores or differences, as `founding_table.py` describes it."""
    rng, (sets, seeds, rows) = np.random.default_rng(0), scores.shape
    if sets == 1:  # the interval is about this set
        scores, (sets, seeds) = scores.transpose(1, 0, 2), (seeds, 1)
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).T / rows  # (rows, resamples)
    means = scores @ counts  # (sets, seeds, resamples)
    whole = means.mean((0, 1))
    again = means.mean(1)[rng.integers(sets, size=(sets, RESAMPLES)), np.arange(RESAMPLES)].mean(0)
    tail = (1 + level) / 2
    wide = float(t.ppf(tail, sets - 1) / norm.ppf(tail) * np.sqrt(sets / (sets - 1))) if sets > 1 else 1.0
    low, high = np.quantile(whole + wide * (again - whole), [1 - tail, tail])
    return float(scores.mean()), float(low), float(high)


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
        folds = ends if row.endswith(ends) else ""
        mean, low, high = interval(scores)
        cells = [f"{100 * mean:.2f} ({100 * low:.1f} to {100 * high:.1f})"]
        entry: dict[str, Any] = {"test": mean, "interval": [low, high]}
        taught = row.removesuffix(ends) in TAUGHT
        against = {
            "over_best_teacher": f"best teacher{folds}" if taught or row in CONTROLS or "ensemble" in row else "",
            "over_single_teacher": "best teacher" if folds and taught else "",
            "over_kd": f"KD from the ensemble{folds}" if taught and "KD" not in row else "",
        }
        for key, other in against.items():
            if not other:
                cells.append("")
            else:
                gain, below, above = interval(scores - table.scores[other], GAIN_LEVEL)
                entry[key] = [gain, below, above]
                cells.append(f"{100 * gain:+.2f} ({100 * below:+.2f} to {100 * above:+.2f})")
            if key == "over_best_teacher":
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
