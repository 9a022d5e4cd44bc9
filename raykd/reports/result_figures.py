"""Figures of the final runs: learning curves, and scores on the examples that teachers get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raykd.reports.analysis import Analysis
from raykd.reports.arms import Arm
from raykd.reports.conclusion import lower_is_better, spelled
from raykd.reports.details import details
from raykd.reports.figures import Drawing, Figure, Theme, legend_below, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST_CURVES = 5  # with more, only some are named


def learning_curves(analysis: Analysis) -> Figure:
    key, title = "learning-curves", "Learning curves"
    headline, scale = analysis.experiment.primary_metric, analysis.scale
    unit = ", %" if analysis.unit else ""
    looks, curves = styles(analysis.arms.all), {}
    for arm in analysis.arms.all:
        if arm.trained and (curve := _curve(analysis, arm)):
            curves[arm.name] = curve
    if not curves:
        return Figure(key, title, "Left out: no training logged a validation score by step.", None)
    best = analysis.best.name if analysis.best else ""
    wanted = (analysis.best, analysis.finetune, *analysis.arms.of("control")[:2])
    prominent = [arm.name for arm in wanted if arm] if len(curves) > MOST_CURVES else [*curves]
    taught = ((analysis.ensemble, "the ensemble", "-"), (analysis.teacher, "the best teacher", (0, (1, 2))))
    levels: list[tuple[str, float, Any]] = [
        (label, arm.mean(f"final_validation/{headline}") * scale, dash) for arm, label, dash in taught if arm
    ]
    ylabel = f"validation {spelled(headline)}{lower_is_better(analysis)}{unit}"

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        rest = [name for name in curves if name not in prominent]
        for name in rest:
            steps, values = curves[name]
            label = f"the other {len(rest)}" if name == rest[0] else None
            axes.plot(steps, values.mean(0) * scale, label=label, color=theme.muted, linewidth=1, alpha=0.45)
        for name in [name for name in prominent if name in curves]:
            steps, values = curves[name]
            style = looks[name].line(theme) | ({"linewidth": 2.4, "zorder": 3} if name == best else {"zorder": 2.5})
            axes.plot(steps, values.mean(0) * scale, label=name, markevery=max(1, len(steps) // 6), **style)
            if len(values) > 1:
                shade = {"color": style["color"], "linewidth": 0, "alpha": 0.18 if name == best else 0.07}
                axes.fill_between(steps, values.min(0) * scale, values.max(0) * scale, **shade)
        for label, level, dash in levels:
            axes.axhline(level, color=theme.ink, linewidth=1, linestyle=dash, label=label)
        axes.set(xlabel="optimizer steps", ylabel=ylabel, xlim=(0, None))
        legend_below(canvas, axes, 3 if len(curves) > 4 else 2)

    caption = "Mean over seeds; the band spans the lowest to the highest seed."
    if len(curves) > len(prominent):
        caption += " Named are the best method, fine-tuning and the best controls; the others are faint."
    if any(arm.runs[0].number("method.generations", 1) > 1 for arm in analysis.arms.of("method")):
        caption += " The generations of born-again follow one another, each from a new initialisation."
    return Figure(key, title, caption, Drawing(plot, 3.1 + 0.18 * (len(prominent) // 3 + 1)))


def _curve(analysis: Analysis, arm: Arm) -> tuple[list[int], np.ndarray] | None:
    """Steps, and (seeds, steps) values, at the steps that all seeds logged."""
    metric = f"validation/{analysis.experiment.primary_metric}"
    histories = [analysis.experiment.history(run, metric) for run in arm.runs]
    steps = sorted(set(histories[0]).intersection(*histories[1:]))
    return (steps, np.array([[h[s] for s in steps] for h in histories])) if len(steps) > 1 else None


def mistakes(analysis: Analysis) -> Figure:
    """Each model's score on the test examples, grouped by how many teachers are wrong on them."""
    key, title = "teachers-mistakes", "Where the teachers were wrong"
    teachers = [t for t in analysis.competent_teachers if "test" in t.scores]
    wanted = ((analysis.best, "the student"), (analysis.finetune, "fine-tuning"), (analysis.ensemble, "the ensemble"))
    shown = [(arm, f"{text} ({arm.name})" if text == "the student" else text)
             for arm, text in wanted if arm and "test" in arm.scores]  # fmt: skip
    if not teachers or not shown:
        return Figure(key, title, "Left out: it needs test predictions of the teachers and of a student.", None)
    if analysis.experiment.lower or not analysis.experiment.share:
        metric = spelled(analysis.experiment.primary_metric)
        return Figure(key, title, f"Left out: {metric} does not say on which examples a model is wrong.", None)
    full = 100.0 if analysis.experiment.percent else 1.0
    every = [arm.scores["test"] for arm in (*teachers, *(arm for arm, _ in shown))]
    # Runs of older versions do not say whether their rows are graded.
    if not analysis.experiment.graded_rows or any(scores.min() < 0 or scores.max() > full for scores in every):
        reason = "Left out: this task scores all examples together, so a single example has no score of its own."
        return Figure(key, title, reason, None)
    right = np.stack([t.scores["test"][0] for t in teachers]) >= full / 2  # QA: half of the answer's words
    wrong = (~right).sum(0)  # (examples,)
    groups = [k for k in range(len(teachers) + 1) if (wrong == k).any()]
    values = {text: [arm.scores["test"][:, wrong == k].mean() * analysis.scale for k in groups] for arm, text in shown}
    counts = [int((wrong == k).sum()) for k in groups]
    names = {0: "none", len(teachers): f"all {len(teachers)}"}
    labels = [f"{names.get(k, k)}\n{n:,}" for k, n in zip(groups, counts, strict=True)]
    unit = "mean F1" if analysis.experiment.primary_metric == "f1" else "right"

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        looks = {"the ensemble": (theme.muted, "D", (0, (1, 1.5))), "fine-tuning": (theme.ink, "s", (0, (6, 2)))}
        for i, (text, heights) in enumerate(values.items()):
            colour, marker, dash = looks.get(text, (theme.colours[0], "o", "-"))
            axes.plot(
                np.arange(len(groups)) + 0.04 * (i - 1), heights, label=text, color=colour, marker=marker,
                linestyle=dash, markersize=7, markeredgecolor=theme.paper,
            )  # fmt: skip
        axes.set_xticks(range(len(groups)), labels)
        axes.set(xlabel="teachers that are wrong, and test examples", ylabel=f"{unit}, %", ylim=(-4, 104))
        axes.margins(x=0.08)
        legend_below(canvas, axes, 3)

    rule = (
        "less than half of the answer's words (F1 below 50)"
        if analysis.experiment.primary_metric == "f1"
        else "not right"
    )
    caption = f"Test examples by the number of teachers that are wrong on them ({rule}); means over seeds."
    if len(teachers) in groups:
        of_all = ", ".join(f"{text} {heights[-1]:.0f}%" for text, heights in values.items())
        caption += f" Where every teacher is wrong ({counts[-1]:,} examples): {of_all}."
    return Figure(key, title, caption, Drawing(plot, 3.2))


def calibration(analysis: Analysis) -> Figure:
    """A reliability diagram of the student and of the ensemble."""
    key, title = "reliability", "Confidence and accuracy"
    found = details(analysis)
    if found is None:
        return Figure(key, title, "Left out: it needs test predictions with a label and a confidence.", None)
    ours, theirs = found.reliability

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        axes.plot([0, 100], [0, 100], color=theme.grid, linewidth=1.2)
        for bins, label, colour, marker, dash in (
            (ours, "the student", theme.colours[0], "o", "-"),
            (theirs, "the ensemble", theme.muted, "D", (0, (1, 1.5))),
        ):
            places = [100 * confidence for confidence, *_ in bins]
            heights = [100 * right for _, right, _ in bins]
            sizes = [15 + 120 * count / sum(n for *_, n in bins) for *_, count in bins]
            axes.plot(places, heights, color=colour, linestyle=dash, label=label, marker=marker, markersize=3)
            axes.scatter(places, heights, s=sizes, color=colour, marker=marker, edgecolors=theme.paper, zorder=3)
        axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 102), ylim=(-4, 104))
        legend_below(canvas, axes, 2)

    caption = f"Test examples by confidence, in tenths; larger marks have more of them. {found.seed} and the ensemble. "
    return Figure(key, title, caption + "Below the diagonal a model is surer than it is right.", Drawing(plot, 3.2))
