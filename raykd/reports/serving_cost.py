"""What the models cost to serve: the report's table, its sentence, and the figure of score against latency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from raykd.common.intervals import interval
from raykd.common.units import latency, shown_size
from raykd.reports.analysis import Analysis
from raykd.reports.arms import Arm
from raykd.reports.conclusion import score, spelled
from raykd.reports.figures import Drawing, Figure, Theme, legend_below
from raykd.tracking.tags import Tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_STUDENT = "the student"


@dataclass(frozen=True)
class MeasuredModel:
    """One model whose cost was measured. cost: as `raykd.models.serving_cost.measure` returns it."""

    name: str
    kind: str
    arm: Arm
    cost: dict[str, Any]


def measured_models(analysis: Analysis) -> list[MeasuredModel]:
    """The student, the ensemble and the teachers that were measured on the same device; the student comes first.

    The student is the best method's, or else what a control has trained.
    """
    student = analysis.student or analysis.finetune
    found: list[MeasuredModel] = []
    for arm in (student, analysis.ensemble, *analysis.arms.of("teacher")):
        costs = analysis.experiment.serving
        cost = next((costs[run.name] for run in (arm.runs if arm else []) if run.name in costs), None)
        if arm and cost and (not found or cost["device"] == found[0].cost["device"]):
            name = f"{_STUDENT} ({arm.name})" if arm is student else arm.name
            found.append(MeasuredModel(name, "student" if arm is student else arm.kind, arm, cost))
    return found


def serving_cells(analysis: Analysis) -> list[dict[str, str]]:
    """The lines of the table, as text."""
    metric = f"final_test/{analysis.experiment.primary_metric}"
    return [
        {
            "name": model.name,
            "kind": model.kind,
            "parameters": f"{model.cost['parameters']:,}",
            "size": shown_size(model.cost["size_on_disk_bytes"]),
            "one_row": latency(model.cost["one_row"]),
            "batch": latency(model.cost["batch"]),
            "rows": str(model.cost["batch"]["rows"]),
            "throughput": f"{model.cost['batch']['throughput_rows_per_s']:,.0f}",
            "test": score(model.arm.mean(metric), analysis),
        }
        for model in measured_models(analysis)
    ]


def what_serving_costs(analysis: Analysis) -> str:
    """How the student compares with the ensemble, and how that was measured. "" if it was not measured."""
    models = measured_models(analysis)
    if not models:
        return ""
    text = ""
    if models[0].kind == "student" and (ensemble := next((m for m in models if m.kind == "ensemble"), None)):
        faster = ensemble.cost["one_row"]["latency_ms"] / models[0].cost["one_row"]["latency_ms"]
        smaller = ensemble.cost["size_on_disk_bytes"] / models[0].cost["size_on_disk_bytes"]
        text = f"The student answers one row {times(faster)} as fast as the ensemble"
        text += f" and takes {1 / smaller:.0%} of its room on disk. "
    cost = models[0].cost
    text += f"Measured on {cost['device']}, in {cost['dtype']}, from encoded rows to logits, without tokenizing"
    text += ": median of the repetitions (10th to 90th percentile)"
    text += ". The ensemble's members run one after another, so its times are the sums of theirs"
    folds = any(arm.runs[0].tags.get(Tag.FOLDS, "1") != "1" for arm in analysis.arms.of("teacher"))
    return f"{text}; a teacher with folds is all of its fold models together." if folds else f"{text}."


def times(factor: float) -> str:
    return f"{factor:.1f} times" if factor < 10 else f"{factor:,.0f} times"


def score_latency(analysis: Analysis) -> Figure:
    """Score against the latency of one row, with the intervals of both."""
    key, title = "score-latency", "Score and latency"
    models = measured_models(analysis)
    if len(models) < 2:
        return Figure(key, title, "Left out: the models' latency was not measured.", None)
    metric, row_groups = f"final_test/{analysis.experiment.primary_metric}", analysis.arms.row_groups.get("test")
    points = []
    for model in models:
        one, middle = model.cost["one_row"], model.arm.mean(metric)
        scores = model.arm.scores.get("test")
        low, high = (middle, middle) if scores is None else interval(scores, row_groups)
        if math.isnan(low):  # there is none
            low = high = middle
        points.append((one["latency_ms"], one["latency_p10_ms"], one["latency_p90_ms"], middle, low, high))
    at = np.array(points)
    at[:, 3:] *= analysis.scale
    wide = at[:, 0].max() > 10 * at[:, 0].min()
    shown = [(model.name, model.kind) for model in models]
    unit = ", %" if analysis.unit else ""
    ylabel = f"test {spelled(analysis.experiment.primary_metric)}{unit}"

    def plot(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        of_teachers = cycle(("s", "^", "v", "P", "X", "*", "h"))
        for (name, kind), (x, left, right, y, low, high) in zip(shown, at, strict=True):
            looks: dict[str, Any] = {"color": theme.colours[0], "marker": "o", "markersize": 8, "zorder": 3}
            if kind == "ensemble":
                looks = {"color": theme.ink, "marker": "D"}
            elif kind == "teacher":
                looks = {"color": theme.muted, "marker": next(of_teachers)}
            ends: dict[str, Any] = {
                "xerr": [[x - left], [right - x]],
                "yerr": [[y - low], [high - y]],
                "elinewidth": 1.2,
            }
            axes.errorbar(x, y, label=name, linestyle="none", **ends, **looks)
        if wide:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.set(xlabel="latency of one row, ms", ylabel=ylabel)
        legend_below(canvas, axes, 2)

    caption = "Vertical: 95% interval over test examples. Horizontal: 10th to 90th percentile of the repetitions. "
    better = "Down" if analysis.experiment.lower else "Up"
    caption += f"{better} and to the left is better. {models[0].cost['device']}."
    return Figure(key, title, caption, Drawing(plot, 3.1 + 0.2 * ((len(models) + 1) // 2)))
