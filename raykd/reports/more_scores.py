"""The report's table of what else is measured of language models, beside their negative log-likelihood."""

import math
from collections.abc import Sequence
from typing import Any

from raykd.common.metrics import decimals
from raykd.reports.analysis import Analysis, Row
from raykd.reports.format import NONE

_COLUMNS = {
    "perplexity": "Perplexity",
    "accuracy": "Next token right",
    "divergence": "Divergence from the ensemble",
    "exact_match": "Exact match",
    "answer_f1": "Answer F1",
    "rouge_l": "ROUGE-L",
}
_SHARES = {"accuracy", "exact_match", "answer_f1", "rouge_l"}
_WHAT = {
    "divergence": "Divergence: the mean over tokens of the KL divergence of the model from the uniform ensemble, in "
    "nats (lower is closer).",
    "exact_match": "Exact match, F1 and ROUGE-L: of greedily generated texts, against the answers.",
}


def more_scores(analysis: Analysis, rows: Sequence[Row]) -> dict[str, Any]:
    """`columns`, `rows` of cells, and a `note`; {} for other tasks. Means over seeds, on test.

    rows: those of the leaderboard.
    """
    values = {
        name: [row.arm.mean(f"final_test/{name}") for row in rows]
        for name in _COLUMNS
        if name != analysis.experiment.primary_metric
    }
    values = {name: column for name, column in values.items() if not all(math.isnan(value) for value in column)}
    if "perplexity" not in values:
        return {}
    lines = [
        {
            "name": row.arm.name,
            "kind": row.arm.kind,
            "best": row.arm is analysis.best,
            "cells": [(_COLUMNS[name], _text(name, column[at])) for name, column in values.items()],
        }
        for at, row in enumerate(rows)
    ]
    note = " ".join(text for name, text in _WHAT.items() if name in values)
    return {"columns": [_COLUMNS[name] for name in values], "rows": lines, "note": note}


def _text(name: str, value: float) -> str:
    if math.isnan(value):
        return NONE
    return f"{value:.1%}" if name in _SHARES else f"{value:.{decimals(value, 3)}f}"
