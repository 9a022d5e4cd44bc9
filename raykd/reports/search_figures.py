"""Figures of a sweep's trials: score against W, and alpha x T."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from raykd.common.units import counted
from raykd.reports.analysis import Analysis, trained_scores
from raykd.reports.conclusion import lower_is_better, points, spelled
from raykd.reports.figures import Drawing, Figure, Theme
from raykd.reports.read import Child
from raykd.reports.statistics import trial_noise
from raykd.reports.weights import NOTHING_TO_WEIGH, weights_changed

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure as Canvas

CELLS = 8  # up to this many values of alpha or T have a row or column each, if most cells have a trial


def scored_trials(analysis: Analysis) -> list[tuple[Child, float]]:
    """Finished trials and their validation score, scaled as in the tables if the metric is the primary one."""
    metric = analysis.experiment.metric
    scale = analysis.scale if metric == analysis.experiment.primary_metric else 1.0
    trials = [(t, t.validation(metric)) for t in analysis.experiment.of("trial") if t.state == "finished"]
    return [(t, value * scale) for t, value in trials if value is not None and np.isfinite(value)]


def score_label(analysis: Analysis) -> str:
    """Of an axis. It says which end is the better one where that is not the upper one."""
    metric = analysis.experiment.metric
    if metric != analysis.experiment.primary_metric:
        return f"validation {spelled(metric)}"
    return f"validation {spelled(metric)}{lower_is_better(analysis)}" + (", %" if analysis.unit else "")


def w_curve(analysis: Analysis) -> Figure:
    key, title = "w-curve", "Score against W"
    trials = [(t, s) for t, s in scored_trials(analysis) if t.method in ("weighted", "kd") and _has_all_teachers(t)]
    weighed = [(t.number("method.W", 1.0), score) for t, score in trials if _weighting(t) == "correctness"]
    plain = [score for t, score in trials if _weighting(t) == "mean"] + [score for w, score in weighed if w == 1]
    below = [(w, score) for w, score in weighed if w < 1]
    if len({w for w, _ in below}) < 2:
        return Figure(key, title, "Left out: no two values of W below 1 were tried.", None)
    top = max if analysis.experiment.sign > 0 else min
    best = {w: top(score for v, score in below if v == w) for w, _ in below}
    noise = trial_noise(trained_scores(analysis.arms.all, "validation"), analysis.arms.row_groups["validation"])
    band = noise * analysis.scale
    banded = bool(plain) and np.isfinite(noise) and analysis.experiment.metric == analysis.experiment.primary_metric
    level = top(plain) if plain else None
    plain_label = f"W = 1 (plain KD), the best of {counted(len(plain), 'trial')}"
    ylabel = score_label(analysis)

    def plot(canvas: Canvas, theme: Theme) -> None:
        from matplotlib.patheffects import withStroke

        axes = canvas.add_subplot()
        if level is not None:
            if banded:
                axes.axhspan(level - band, level + band, color=theme.grid, alpha=0.6, linewidth=0)
            axes.axhline(level, color=theme.ink, linestyle=(0, (6, 2)), linewidth=1.2)
            axes.plot([1] * len(plain), plain, "s", color=theme.ink, markerfacecolor="none", alpha=0.8, clip_on=False)
            axes.annotate(
                plain_label, (0.97, level), (0, -3), textcoords="offset points",
                ha="right", va="top", color=theme.ink, fontsize=8.5, zorder=4,
                path_effects=[withStroke(linewidth=3, foreground=theme.paper)],
            )  # fmt: skip
        axes.plot(*zip(*below, strict=True), "o", color=theme.colours[0], alpha=0.45, markeredgewidth=0)
        axes.plot(*zip(*sorted(best.items()), strict=True), "-o", color=theme.colours[0], markeredgecolor=theme.paper)
        axes.set(xlabel="W, the weight of a wrong teacher", ylabel=ylabel, xlim=(-0.03, 1.03))

    caption = f"Each dot is one trial of weighted distillation ({len(below)}), the line joins the best at each W"
    caption += "; squares are trials without weighting, the dashed line is the best of them" if plain else ""
    most = max(Counter(w for w, _ in below).values())
    if len(plain) > most:
        caption += f" ({len(plain)}, and at most {most} at one W: the best of more trials is better by chance alone)"
    if banded:
        caption += f". Grey: one standard error of the difference between two trials ({points(noise, analysis)})"
    caption += "."
    caption += "" if plain else " There is no W = 1 line: no trial without weighting was run."
    if weights_changed(analysis) < NOTHING_TO_WEIGH:
        caption += " W changed almost no weights, so a flat curve means nothing."
    return Figure(key, title, caption, Drawing(plot))


def _weighting(trial: Child) -> str:
    """An older raykd logged only the method's name."""
    return trial.params.get("method.weighting") or {"weighted": "correctness"}.get(trial.method, "mean")


def _has_all_teachers(trial: Child) -> bool:
    return trial.params.get("method.teacher", "None") == "None"


def alpha_temperature(analysis: Analysis) -> Figure:
    key, title = "alpha-temperature", "α × T"
    trials = [
        (t.number("method.alpha"), t.number("method.temperature", 1.0), score)
        for t, score in scored_trials(analysis)
        if t.number("method.alpha") > 0 and t.params.get("method.schedule", "constant") == "constant"
    ]
    if len({a for a, *_ in trials}) < 2 or len({t for _, t, _ in trials}) < 2:
        return Figure(key, title, "Left out: no two values of both α and T were tried.", None)
    alphas, temperatures = {a for a, *_ in trials}, {t for _, t, _ in trials}
    filled = len({(a, t) for a, t, _ in trials}) / (len(alphas) * len(temperatures))
    # As many ranges as leave about three trials to a cell, unless most combinations of values were tried.
    most = CELLS if filled >= 0.5 else min(5, max(2, math.isqrt(len(trials) // 3)))
    columns, column_of = _bins([a for a, *_ in trials], most)
    rows, row_of = _bins([t for _, t, _ in trials], most)
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for column, row, (*_, score) in zip(column_of, row_of, trials, strict=True):
        cells[row, column].append(score)
    grid = np.full((len(rows), len(columns)), np.nan)
    for at, scores in cells.items():
        grid[at] = np.mean(scores)

    primary = analysis.experiment.metric == analysis.experiment.primary_metric
    sign, decimals = analysis.experiment.sign, analysis.decimals

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        shades = ramp(theme, sign)
        picture = axes.imshow(grid, origin="lower", aspect="auto", cmap=shades)
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                red, green, blue, _ = picture.cmap(picture.norm(value))
                ink = "#111111" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#ffffff"
                count = len(cells[row, column])
                text = (f"{value:.{decimals}f}" if primary else f"{value:.3g}") + (
                    f"\n{count} trials" if count > 1 else ""
                )
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.set(xlabel="α, the weight of the teachers' term", ylabel="temperature T")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    label = score_label(analysis).replace(", %", " (%)")
    caption = f"Mean {label} of {counted(len(trials), 'trial')} with a constant α; empty: no finished trial."
    return Figure(key, title, caption, Drawing(plot, 1.2 + 0.42 * len(rows)))


def _bins(values: Sequence[float], most: int) -> tuple[list[str], list[int]]:
    """Labels, and each value's place among them: its own if there are few values, else one of up to `most` ranges
    that hold about equally many values."""
    distinct = sorted(set(values))
    if len(distinct) <= most:
        return [f"{v:.3g}" for v in distinct], [distinct.index(v) for v in values]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, min(most, 5) + 1)))
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return [f"{low:.2g}–{high:.2g}" for low, high in pairwise(edges)], places.tolist()


def ramp(theme: Theme, sign: int) -> LinearSegmentedColormap:
    """Cividis (Nunez et al. 2018), the same to colour-blind eyes, without the end that the paper swallows; the
    better, the brighter."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    shades = colormaps["cividis"](np.linspace(*theme.ramp, 256)[::sign])
    return LinearSegmentedColormap.from_list("score", shades)
