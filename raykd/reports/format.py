"""The cells of the report's tables, as text."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from raykd.common.units import counted
from raykd.reports.analysis import LEVEL, Analysis, LeaderboardRow, over_others
from raykd.reports.arms import Arm, trial_counts
from raykd.reports.conclusion import gain_interval, gain_size, score, spelled, titled
from raykd.reports.costs import duration
from raykd.reports.statistics import Gain
from raykd.reports.weights import folds, weights_changed

NONE = "–"


def facts(analysis: Analysis) -> str:
    """The experiment in one line: task, teachers, trials, seeds, test examples."""
    experiment = analysis.experiment
    parts = [experiment.task, f"{counted(len(analysis.arms.of('teacher')), 'teacher')} ({folds(analysis)})"]
    if trials := len(experiment.of("trial")):
        parts.append(counted(trials, "trial") + (f" ({experiment.algorithm})" if experiment.algorithm else ""))
    if analysis.seeds:
        parts.append(counted(analysis.seeds, "seed"))
    if analysis.test_examples:
        grouped = experiment.grouped_by and analysis.means and f" in {analysis.means.groups:,} groups"
        parts.append(f"{analysis.test_examples:,} test examples{grouped or ''}")
    return " · ".join(filter(None, parts))


def table_text(text: object) -> str:
    """Text for the cell of a Markdown table."""
    return re.sub(r"\s*\n\s*", " ", str(text)).replace("|", r"\|")


def literal(text: str) -> str:
    """A user's text for the cell of a Markdown table, of which nothing is read as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~$!])", r"\\\1", " ".join(text.split()))


def best_gains(analysis: Analysis) -> dict[str, Gain]:
    """The best method's gains, by what they are over."""
    others = (
        (analysis.finetune, "over fine-tuning"),
        (analysis.teacher, "over the best teacher"),
        (analysis.ensemble, "against the ensemble"),
    )
    return {text: analysis.gain(analysis.best, other) for other, text in others if analysis.best and other}


def gains(analysis: Analysis) -> list[dict[str, Any]]:
    """The best method's gains, with their places on a common axis."""
    of_best = best_gains(analysis)
    axis = axis_of(analysis, of_best.values())
    labels = {text: text.replace("over", "against") for text in of_best}
    if len(analysis.arms.of("teacher")) == 1:  # the only one
        labels["over the best teacher"] = "against the teacher"
    return [_drawn(analysis, gain, axis) | {"label": labels[text]} for text, gain in of_best.items()]


def against_others(analysis: Analysis) -> dict[str, Any]:
    """The best method's gains over the other methods and the controls: `rows` and a `note`; {} if there are none."""
    found, level = over_others(analysis)
    if not found:
        return {}
    axis = axis_of(analysis, [gain for _, gain in found])
    rows: list[dict[str, Any]]
    rows = [{"name": arm.name, "kind": arm.kind, "gain": _drawn(analysis, gain, axis)} for arm, gain in found]
    note = f"By how much {titled(analysis.best)} is better on test." if analysis.best else ""
    single = [arm.name for arm, gain in found if not gain.seeds_known and math.isfinite(gain.low)]
    if single:
        whose = "" if len(single) == len(found) else f" against {', '.join(single)}"
        note += f" The intervals{whose} are over test examples alone."
    if level > LEVEL and any(row["gain"]["interval"] for row in rows):
        note += f" These are simultaneous {LEVEL:.0%} intervals: each has a level of {level:.2%}."
    return {"rows": rows, "note": note}


def axis_of(analysis: Analysis, gains: Iterable[Gain]) -> tuple[float, float]:
    """Both ends, in the report's numbers, of an axis that covers 0 and all gains."""
    ends = [0.0, *(x * analysis.scale for g in gains for x in (g.value, g.low, g.high) if math.isfinite(x))]
    room = 0.04 * (max(ends) - min(ends)) or 1.0
    return min(ends) - room, max(ends) + room


def _drawn(analysis: Analysis, gain: Gain, axis: tuple[float, float]) -> dict[str, Any]:
    """A gain as text, and its places on the axis in percent of the axis's length."""
    low, high = axis
    points = {"zero": 0.0, "value": gain.value, "low": gain.low, "high": gain.high}
    place = {name: 100 * (x * analysis.scale - low) / (high - low) for name, x in points.items()}
    text = {"value": gain_size(gain, analysis), "interval": gain_interval(gain, analysis)}
    return {**text, "points": analysis.points, "shown": gain.shown, "at": place}


def optional_columns(analysis: Analysis, rows: Sequence[LeaderboardRow]) -> dict[str, bool]:
    """Which of the optional columns have values other than 0."""
    columns = {
        name: any(abs(getattr(row, name)) > 0 for row in rows) for name in ("ece", "seconds", "gpu_seconds", "kept")
    }
    return columns | {"trials": any(_trials(analysis, row.arm) for row in rows)}


def cells(analysis: Analysis, row: LeaderboardRow, rows: Sequence[LeaderboardRow]) -> dict[str, Any]:
    """One line of the leaderboard. rows: all lines, whose gains share an axis."""
    same = analysis.experiment.metric == analysis.experiment.primary_metric
    validation = score(row.validation, analysis) if same else f"{row.validation:.4g}"
    gain = _drawn(analysis, row.gain, axis_of(analysis, [r.gain for r in rows if r.gain])) if row.gain else None
    return {
        "name": row.arm.name,
        "kind": row.arm.kind,
        "best": row.arm is analysis.best,
        "setting": row.arm.setting,
        "chance": _chance(analysis, row.arm),
        "trials": _trials(analysis, row.arm),
        "seeds": str(len(row.arm.runs)) if row.arm.trained else "",
        "validation": NONE if math.isnan(row.validation) else validation,
        "test": score(row.test, analysis),
        "sd": "" if math.isnan(row.sd) else f"{row.sd * analysis.scale:.{analysis.decimals}f}",
        "gain": gain,
        "kept": f"{row.kept:.0%}".replace("-", "−") if not math.isnan(row.kept)
        else "n/a" if row.arm.kind in ("method", "control") else NONE,
        "ece": NONE if math.isnan(row.ece) or not analysis.learnt(row.arm) else f"{row.ece:.3f}",
        "seconds": NONE if math.isnan(row.seconds) else duration(row.seconds),
        "gpu_seconds": NONE if math.isnan(row.gpu_seconds) else f"{row.gpu_seconds:,.0f}",
    }  # fmt: skip


def _trials(analysis: Analysis, arm: Arm) -> str:
    """How many settings were tried; "" if none."""
    finished, started = trial_counts(analysis.experiment, arm)
    return "" if not started else str(started) if finished == started else f"{finished} of {started}"


def _chance(analysis: Analysis, arm: Arm) -> str:
    """A remark on an arm that has learnt nothing, or some of whose seeds have."""
    count = analysis.at_chance(arm)
    return "" if not count else "at chance" if count == len(arm.runs) else f"{count} of {len(arm.runs)} seeds at chance"


def generations(analysis: Analysis) -> list[str]:
    """Born-again: the test score of every generation, because gains saturate and are not monotone."""
    lines = []
    for arm in analysis.arms.of("method"):
        if arm.runs[0].number("method.generations", 1) > 1:
            name = f"generations/test_{analysis.experiment.primary_metric}"
            curves = [c for r in arm.runs if (c := list(analysis.experiment.history(r, name).values()))]
            if curves and len({len(c) for c in curves}) == 1:
                means = [sum(c) / len(c) for c in zip(*curves, strict=True)]
                scores = ", ".join(score(m, analysis) for m in means)
                which = f"Each seed's model is the one of its {len(means)} generations that is best on validation."
                lines.append(f"{arm.name}, test by generation: {scores}. {which}")
    return lines


def comparison(analysis: Analysis, slug: str, axis: tuple[float, float]) -> dict[str, Any]:
    """One line of the table of several experiments, whose gains share an axis."""
    share = weights_changed(analysis)
    gain = {text: _drawn(analysis, g, axis) for text, g in best_gains(analysis).items()}
    best = analysis.best
    return {
        "slug": slug,
        "title": analysis.experiment.name,
        "task": analysis.experiment.task,
        "best": best.name if best else NONE,
        "setting": best.setting if best else "",
        "test": score(best.mean(f"final_test/{analysis.experiment.primary_metric}"), analysis) if best else NONE,
        "headline": spelled(analysis.experiment.primary_metric),
        "lower": analysis.experiment.lower,
        "gains": [gain.get(label) for label in ("over fine-tuning", "over the best teacher", "against the ensemble")],
        "changed": NONE if math.isnan(share) else f"{share:.1%}",
        "folds": folds(analysis),
        "verdict": analysis.verdict,
    }
