"""What the tables say, cell by cell."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from raykd.report.analysis import Analysis, Row
from raykd.report.conclusion import interval, percent, signed, spelled
from raykd.report.costs import duration
from raykd.report.statistics import Gain
from raykd.report.weights import folds, weights_changed

NONE = "–"


def facts(found: Analysis) -> str:
    """What was done, in a line."""
    experiment = found.experiment
    parts = [experiment.task, f"{len(found.arms.of('teacher'))} teachers ({folds(found)})"]
    if trials := len(experiment.of("trial")):
        parts.append(f"{trials} trials" + (f" ({experiment.algorithm})" if experiment.algorithm else ""))
    if found.seeds:
        parts.append(f"{found.seeds} seed{'s' if found.seeds > 1 else ''}")
    if found.test_examples:
        parts.append(f"{found.test_examples:,} test examples")
    return " · ".join(filter(None, parts))


def best_gains(found: Analysis) -> dict[str, Gain]:
    """The best method's three, by what they are over."""
    others = (
        (found.finetune, "over fine-tuning"),
        (found.teacher, "over the best teacher"),
        (found.ensemble, "against the ensemble"),
    )
    return {text: found.gain(found.best, other) for other, text in others if found.best and other}


def gains(found: Analysis) -> list[dict[str, Any]]:
    """The best method's gains, drawn on one axis."""
    of_best = best_gains(found)
    axis = axis_of(found, of_best.values())
    return [_drawn(found, gain, axis) | {"label": text} for text, gain in of_best.items()]


def axis_of(found: Analysis, gains: Iterable[Gain]) -> tuple[float, float]:
    """Both ends, in points, of an axis that holds 0 and all of them."""
    ends = [0.0, *(x * found.scale for g in gains for x in (g.value, g.low, g.high) if math.isfinite(x))]
    room = 0.04 * (max(ends) - min(ends)) or 1.0
    return min(ends) - room, max(ends) + room


def _drawn(found: Analysis, gain: Gain, axis: tuple[float, float]) -> dict[str, Any]:
    """Text, and places on the axis, in percent of its length."""
    low, high = axis
    points = {"zero": 0.0, "value": gain.value, "low": gain.low, "high": gain.high}
    place = {name: 100 * (x * found.scale - low) / (high - low) for name, x in points.items()}
    text = {"value": signed(gain.value * found.scale, found.decimals), "interval": interval(gain, found)}
    return {**text, "shown": gain.shown, "at": place}


def optional_columns(rows: Sequence[Row]) -> dict[str, bool]:
    """Which columns have anything in them."""
    return {name: any(abs(getattr(row, name)) > 0 for row in rows)
            for name in ("ece", "seconds", "gpu_seconds", "kept")}  # fmt: skip


def cells(found: Analysis, row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """One line of the leaderboard; `rows`: all, for their common axis."""
    same = found.experiment.metric == found.experiment.primary_metric
    validation = percent(row.validation, found) if same else f"{row.validation:.4g}"
    gain = _drawn(found, row.gain, axis_of(found, [r.gain for r in rows if r.gain])) if row.gain else None
    return {
        "name": row.arm.name,
        "kind": row.arm.kind,
        "best": row.arm is found.best,
        "setting": row.arm.setting,
        "seeds": str(len(row.arm.runs)) if row.arm.trained else "",
        "validation": NONE if math.isnan(row.validation) else validation,
        "test": percent(row.test, found),
        "sd": "" if math.isnan(row.sd) else f"{row.sd * found.scale:.{found.decimals}f}",
        "gain": gain,
        "kept": f"{row.kept:.0%}".replace("-", "−") if not math.isnan(row.kept)
        else "n/a" if row.arm.kind in ("method", "control") else NONE,
        "ece": NONE if math.isnan(row.ece) else f"{row.ece:.3f}",
        "seconds": NONE if math.isnan(row.seconds) else duration(row.seconds),
        "gpu_seconds": NONE if math.isnan(row.gpu_seconds) else f"{row.gpu_seconds:,.0f}",
    }  # fmt: skip


def generations(found: Analysis) -> list[str]:
    """Born-again: every generation's test score, for gains saturate and are not monotone."""
    lines = []
    for arm in found.arms.of("method"):
        if arm.runs[0].number("method.generations", 1) > 1:
            name = f"generations/test_{found.experiment.primary_metric}"
            curves = [c for r in arm.runs if (c := list(found.experiment.history(r, name).values()))]
            if curves and len({len(c) for c in curves}) == 1:
                means = [sum(c) / len(c) for c in zip(*curves, strict=True)]
                lines.append(f"{arm.name}, test by generation: {', '.join(percent(m, found) for m in means)}.")
    return lines


def comparison(found: Analysis, slug: str, axis: tuple[float, float]) -> dict[str, Any]:
    """One experiment's line in the table of several, whose gains share an axis."""
    share = weights_changed(found)
    gain = {text: _drawn(found, g, axis) for text, g in best_gains(found).items()}
    best = found.best
    return {
        "slug": slug,
        "title": found.experiment.name,
        "task": found.experiment.task,
        "best": best.name if best else NONE,
        "setting": best.setting if best else "",
        "test": percent(best.mean(f"final_test/{found.experiment.primary_metric}"), found) if best else NONE,
        "headline": spelled(found.experiment.primary_metric),
        "gains": [gain.get(label) for label in ("over fine-tuning", "over the best teacher", "against the ensemble")],
        "changed": NONE if math.isnan(share) else f"{share:.1%}",
        "folds": folds(found),
        "verdict": found.verdict,
    }
