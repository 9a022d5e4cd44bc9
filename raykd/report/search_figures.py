"""Figures of a sweep's trials: score against W, alpha x T, all parameters at once."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure as Canvas

from raykd.report.arms import SHORT, searched, shown
from raykd.report.figures import COLOURS, Figure, Theme, draw
from raykd.report.judgement import Judgement, trained_scores
from raykd.report.read import Child
from raykd.report.statistics import trial_noise
from raykd.report.words import NOTHING_TO_WEIGH, weights_changed

CELLS = 8  # values of alpha or T that have a row or column of their own; more are put into bins
AXES = 6  # parameters side by side


def scored_trials(found: Judgement) -> list[tuple[Child, float]]:
    """Finished trials and their validation score, in percent where the metric is the headline."""
    metric = found.experiment.metric
    scale = found.scale if metric == found.experiment.headline else 1.0
    trials = [(t, t.validation(metric)) for t in found.experiment.of("trial") if t.state == "finished"]
    return [(t, value * scale) for t, value in trials if value is not None and np.isfinite(value)]


def _label(found: Judgement) -> str:
    metric = found.experiment.metric
    return f"validation {metric}" + (", %" if metric == found.experiment.headline else "")


def w_curve(found: Judgement) -> Figure:
    key, title = "w-curve", "Score against W"
    trials = [(t.number("method.W", 1.0), score) for t, score in scored_trials(found) if t.method == "weighted"]
    plain = [s for t, s in scored_trials(found) if t.method == "kd" and t.params.get("method.teacher") == "None"]
    plain += [score for w, score in trials if w == 1]
    below = [(w, score) for w, score in trials if w < 1]
    if len({w for w, _ in below}) < 2:
        return Figure(key, title, "Left out: no two values of W below 1 were tried.", {})
    top = max if found.experiment.sign > 0 else min
    best = {w: top(score for v, score in below if v == w) for w, _ in below}
    noise = trial_noise(trained_scores(found.arms.all, "validation")) * found.scale
    banded = bool(plain) and np.isfinite(noise) and found.experiment.metric == found.experiment.headline

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        if plain:
            level = top(plain)
            if banded:
                axes.axhspan(level - noise, level + noise, color=theme.grid, alpha=0.6, linewidth=0)
            axes.axhline(level, color=theme.ink, linestyle=(0, (6, 2)), linewidth=1.2)
            axes.plot([1] * len(plain), plain, "s", color=theme.ink, markerfacecolor="none", alpha=0.8, clip_on=False)
            axes.annotate(
                "W = 1: plain KD, best trial", (0, level), (2, 3), textcoords="offset points",
                color=theme.ink, fontsize=8.5,
            )  # fmt: skip
        axes.plot(*zip(*below, strict=True), "o", color=COLOURS[0], alpha=0.45, markeredgewidth=0)
        axes.plot(*zip(*sorted(best.items()), strict=True), "-o", color=COLOURS[0], markeredgecolor=theme.paper)
        axes.set(xlabel="W, the weight of a wrong teacher", ylabel=_label(found), xlim=(-0.03, 1.03))

    caption = f"Each dot is one trial of weighted distillation ({len(below)}), the line joins the best at each W"
    caption += "; squares are trials without weighting, the dashed line is the best of them" if plain else ""
    caption += (
        f". Grey: one standard error of the difference between two trials ({noise:.1f} points)" if banded else ""
    caption += "."
    )
    caption += "" if plain else " There is no W = 1 line: no trial without weighting was run."
    if weights_changed(found) < NOTHING_TO_WEIGH:
        caption += " W had next to nothing to act on, so a flat curve means nothing."
    return Figure(key, title, caption, draw(plot))


def alpha_temperature(found: Judgement) -> Figure:
    key, title = "alpha-temperature", "α × T"
    trials = [
        (t.number("method.alpha"), t.number("method.temperature", 1.0), score)
        for t, score in scored_trials(found)
        if t.number("method.alpha") > 0 and t.params.get("method.schedule", "constant") == "constant"
    ]
    if len({a for a, *_ in trials}) < 2 or len({t for _, t, _ in trials}) < 2:
        return Figure(key, title, "Left out: no two values of both α and T were tried.", {})
    columns, column_of = _bins([a for a, *_ in trials], False)
    rows, row_of = _bins([t for _, t, _ in trials], True)
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for column, row, (*_, score) in zip(column_of, row_of, trials, strict=True):
        cells[row, column].append(score)
    grid = np.full((len(rows), len(columns)), np.nan)
    for at, scores in cells.items():
        grid[at] = np.mean(scores)

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        shades = _ramp(theme, found.experiment.sign)
        picture = axes.imshow(grid, origin="lower", aspect="auto", cmap=shades)
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                red, green, blue, _ = picture.cmap(picture.norm(value))
                ink = "#111111" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#ffffff"
                count = len(cells[row, column])
                text = f"{value:.3g}" + (f"\n{count} trials" if count > 1 else "")
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.set(xlabel="α, the weight of the teachers' term", ylabel="temperature T")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    caption = f"Mean {_label(found)} of the {len(trials)} trials with a constant α; empty: not tried."
    return Figure(key, title, caption, draw(plot, 1.2 + 0.42 * len(rows)))


def _bins(values: Sequence[float], logarithmic: bool) -> tuple[list[str], list[int]]:
    """Labels, and each value's place among them: its own if there are few values, else one of five equal ranges."""
    distinct = sorted(set(values))
    if len(distinct) <= CELLS:
        return [f"{v:.3g}" for v in distinct], [distinct.index(v) for v in values]
    space = np.geomspace if logarithmic else np.linspace
    edges = space(distinct[0], distinct[-1], 6)
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, 4)
    return [f"{low:.2g}–{high:.2g}" for low, high in pairwise(edges)], places.tolist()


def _ramp(theme: Theme, sign: int) -> LinearSegmentedColormap:
    """Cividis (Nunez et al. 2018), the same to colour-blind eyes, without the end that the paper swallows; the
    better, the brighter."""
    shades = colormaps["cividis"](np.linspace(*theme.ramp, 256)[::sign])
    return LinearSegmentedColormap.from_list("score", shades)


def parallel(found: Judgement) -> Figure:
    key, title = "parallel-coordinates", "All trials"
    trials = sorted(scored_trials(found), key=lambda pair: found.experiment.sign * pair[1])
    numeric = [k for k in searched(found.experiment) if all(_is_number(t.params.get(k)) for t, _ in trials)][:AXES]
    if len(trials) < 3 or not numeric:
        return Figure(key, title, "Left out: it needs three finished trials and a parameter that was searched.", {})
    arms = sorted({t.tags.get("raykd.arm", t.method) for t, _ in trials}, reverse=True)
    scores = np.array([score for _, score in trials])
    columns: list[tuple[str, np.ndarray, list[tuple[float, str]]]] = [
        ("method", *_categories([t.tags.get("raykd.arm", t.method) for t, _ in trials], arms))
    ]
    for name in numeric:
        short = SHORT.get(name, name.rpartition(".")[2].replace("_", " "))
        columns.append((short, *_scaled(np.array([t.number(name) for t, _ in trials]))))
    columns.append((_label(found).replace("validation ", "validation\n"), *_scaled(scores)))

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        shades, norm = _ramp(theme, found.experiment.sign), Normalize(scores.min(), scores.max())
        for i, score in enumerate(scores):  # the best last, on top
            best = i == len(scores) - 1
            places = [values[i] for _, values, _ in columns]
            style: dict[str, Any] = {"linewidth": 2.6, "alpha": 1.0} if best else {"linewidth": 1.0, "alpha": 0.7}
            axes.plot(range(len(columns)), places, color=COLOURS[0] if best else shades(norm(score)), **style)
        for at, (_, _, ticks) in enumerate(columns):
            axes.axvline(at, color=theme.muted, linewidth=0.8)
            for place, text in ticks:
                side: dict[str, Any] = {"ha": "right", "x": at - 0.05} if at == 0 else {"ha": "left", "x": at + 0.05}
                box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.75}
                axes.text(y=place, s=text, va="center", fontsize=7.5, color=theme.ink, bbox=box, **side)
        axes.set_xticks(range(len(columns)), [name for name, *_ in columns])
        axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(columns) - 0.55))
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        canvas.colorbar(
            ScalarMappable(norm, shades), ax=axes, location="bottom", shrink=0.5, aspect=35, label=_label(found)
        ).outline.set_visible(False)

    best_trial = trials[-1][0]
    caption = f"{len(trials)} finished trials, one line each; the thick one is the best "
    caption += f"({best_trial.tags.get('raykd.arm', best_trial.method)}). What a method does not use is at its "
    caption += "neutral value (α = 0, W = 1, T = 1)."
    if left := len(found.experiment.of("trial")) - len(trials):
        caption += f" {left} trials that were cut short or failed are not drawn."
    return Figure(key, title, caption, draw(plot, 3.8))


def _is_number(text: str | None) -> bool:
    try:
        return np.isfinite(float(text or "nan"))
    except ValueError:
        return False


def _categories(values: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    place = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
    return np.array([place[v] for v in values]), [(y, name) for name, y in place.items()]


def _scaled(values: np.ndarray) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """To 0..1, on a logarithm if they span more than a decade; and the ticks: each value if few, else both ends."""
    logarithmic = values.min() > 0 and values.max() / values.min() > 10
    change = np.log if logarithmic else np.asarray
    low, high = change(values.min()), change(values.max())
    places = (change(values) - low) / (high - low) if high > low else np.full(len(values), 0.5)
    marks = np.unique(values)
    if len(marks) > 5:
        marks = marks[[0, -1]]
    ticks = [(float((change(m) - low) / (high - low)) if high > low else 0.5, shown(str(m))) for m in marks]
    return places, ticks
