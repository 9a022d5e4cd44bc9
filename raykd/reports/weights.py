"""How many decisions the weighting W could change."""

import math
from collections import Counter

import numpy as np

from raykd.reports.analysis import Analysis
from raykd.reports.read import Child
from raykd.tracking.tags import Tag

NOTHING_TO_WEIGH = 0.005  # share of decisions below which W cannot matter


def weights_changed(analysis: Analysis) -> float:
    """The share of labelled training decisions whose weights W changes; NaN if it was not measured."""
    return analysis.ensemble.mean("changed_share") if analysis.ensemble else math.nan


def folds(analysis: Analysis) -> str:
    """Such as "4 folds", or "no folds"."""
    counts = Counter(t.runs[0].tags.get(Tag.FOLDS, "1") for t in analysis.arms.of("teacher"))
    if not counts:
        return "no teachers"
    if set(counts) == {"1"}:
        return "no folds"
    return ", ".join(f"{n} of {counts.total()} with {k} folds" if len(counts) > 1 else f"{k} folds"
                     for k, n in counts.items() if k != "1")  # fmt: skip


def where_w_acts(analysis: Analysis) -> str:
    """How many decisions correctness weighting changed. Without any, a flat curve over W means nothing."""
    share, teachers = weights_changed(analysis), analysis.arms.of("teacher")
    right = [t.mean("train_right_share") for t in teachers]
    if math.isnan(share):
        seen = [s for r in analysis.experiment.of("student", "trial") if (s := _last_changed(r)) is not None]
        if not seen:
            return "The share of decisions whose weights W changes was not measured in this run."
        return f"In the weighted trainings, W changed the weights of {np.mean(seen):.1%} of the decisions."
    text = f"W changes the weights of {share:.1%} of the labelled training decisions: those that some teachers get "
    text += f"right and others wrong ({folds(analysis)}"
    if right and not np.isnan(right).any():
        low, high = f"{min(right):.1%}", f"{max(right):.1%}"
        text += f"; the teachers are right on {low if low == high else f'{low} to {high}'} of all"
    text += "). "
    if analysis.ensemble and not math.isnan(wrong := analysis.ensemble.mean("all_wrong_share")):
        text += f"All teachers are wrong on {wrong:.1%}. "
    if untaught := [t.name for t in teachers if not analysis.learnt(t)]:
        text += f"The mistakes of {', '.join(untaught)}, which learnt nothing, are among these. "
    if share < NOTHING_TO_WEIGH:
        text += "That is almost none: a flat curve over W means nothing here, and weighted is plain KD. "
        if folds(analysis) == "no folds":
            text += (
                "With teachers.*.folds=4 the logits of training rows come from models that were not trained on them."
            )
    return text.strip()


def _last_changed(run: Child) -> float | None:
    return run.metrics.get("train/changed_share") if run.params.get("method.weighting") == "correctness" else None
