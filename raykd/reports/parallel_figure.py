"""Parallel coordinates: every trial of a sweep, all parameters at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raykd.common.units import counted
from raykd.reports.analysis import Analysis
from raykd.reports.arms import SHORT, searched, short_number
from raykd.reports.figures import Drawing, Figure, Theme
from raykd.reports.search_figures import ramp, score_label, scored_trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

AXES = 6  # at most this many parameters


def parallel(analysis: Analysis) -> Figure:
    key, title = "parallel-coordinates", "All trials"
    trials = sorted(scored_trials(analysis), key=lambda pair: analysis.experiment.sign * pair[1])
    numeric = [k for k in searched(analysis.experiment) if all(_is_number(t.params.get(k)) for t, _ in trials)][:AXES]
    if len(trials) < 3 or not numeric:
        return Figure(key, title, "Left out: it needs three finished trials and a parameter that was searched.", None)
    arms = sorted({t.arm for t, _ in trials}, reverse=True)
    scores = np.array([score for _, score in trials])
    columns: list[tuple[str, np.ndarray, list[tuple[float, str]]]] = [
        ("method", *_categories([t.arm for t, _ in trials], arms))
    ]
    for name in numeric:
        short = SHORT.get(name, name.rpartition(".")[2].replace("_", " "))
        values = np.array([t.number(name) for t, _ in trials])
        logarithmic = values.min() > 0 and values.max() / values.min() > 10
        columns.append((f"{short} (log)" if logarithmic else short, *_scaled(values, logarithmic)))
    label, sign = score_label(analysis), analysis.experiment.sign
    columns.append((label.replace("validation ", "validation\n"), *_scaled(scores)))

    def plot(canvas: Canvas, theme: Theme) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        axes = canvas.add_subplot()
        shades, norm = ramp(theme, sign), Normalize(scores.min(), scores.max())
        for i, score in enumerate(scores):  # the best last, on top
            best = i == len(scores) - 1
            places = [values[i] for _, values, _ in columns]
            style: dict[str, Any] = {"linewidth": 2.6, "alpha": 1.0} if best else {"linewidth": 1.0, "alpha": 0.7}
            axes.plot(range(len(columns)), places, color=theme.colours[0] if best else shades(norm(score)), **style)
        for at, (_, _, ticks) in enumerate(columns):
            axes.axvline(at, color=theme.muted, linewidth=0.8)
            for place, text in ticks:
                side: dict[str, Any] = {"ha": "right", "x": at - 0.05} if at == 0 else {"ha": "left", "x": at + 0.05}
                box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.75}
                axes.text(y=place, s=text, va="center", fontsize=7.5, color=theme.ink, bbox=box, zorder=4, **side)
        axes.set_xticks(range(len(columns)), [name for name, *_ in columns])
        axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(columns) - 0.55))
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        canvas.colorbar(
            ScalarMappable(norm, shades), ax=axes, location="bottom", shrink=0.5, aspect=35, label=label
        ).outline.set_visible(False)

    best_trial = trials[-1][0]
    caption = f"{counted(len(trials), 'finished trial')}, one line each; the thick one is the best "
    caption += f"({best_trial.arm}). Parameters that a method does not use are at their "
    caption += "neutral value (α = 0, W = 1, T = 1)."
    if left := len(analysis.experiment.of("trial")) - len(trials):
        caption += f" Not drawn: {counted(left, 'trial')} that failed or that pruning stopped."
    return Figure(key, title, caption, Drawing(plot, 3.8))


def _is_number(text: str | None) -> bool:
    try:
        return np.isfinite(float(text or "nan"))
    except ValueError:
        return False


def _categories(values: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    place = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
    return np.array([place[v] for v in values]), [(y, name) for name, y in place.items()]


def _scaled(values: np.ndarray, logarithmic: bool = False) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Values scaled to 0..1, and ticks; with many values, two ticks."""
    change = np.log if logarithmic else np.asarray
    low, high = change(values.min()), change(values.max())
    places = (change(values) - low) / (high - low) if high > low else np.full(len(values), 0.5)
    marks = np.unique(values)
    if len(marks) > 5:
        marks = marks[[0, -1]]
    ticks = [(float((change(m) - low) / (high - low)) if high > low else 0.5, short_number(str(m))) for m in marks]
    return places, ticks
