"""The report's table of what else was measured on test, beside the primary metric and the calibration."""

import math
from collections.abc import Sequence
from typing import Any

from raykd.common.metrics import decimals
from raykd.reports.analysis import Analysis, LeaderboardRow
from raykd.reports.conclusion import spelled
from raykd.reports.format import NONE

_TEST = "final_test/"
# Of language models, in this order. Those of other tasks are named as elsewhere in the report.
_OF_LANGUAGE_MODELS = {
    "perplexity": "Perplexity",
    "accuracy": "Next-token accuracy",
    "divergence": "Divergence from the ensemble",
    "exact_match": "Exact match",
    "answer_f1": "Answer F1",
    "rouge_l": "ROUGE-L",
}
_SHARES = {"accuracy", "exact_match", "answer_f1", "rouge_l", "macro_f1", "micro_f1", "mean_average_precision"}
_SHARES |= {"entity_f1", "entity_precision", "entity_recall"}
_IN_LEADERBOARD = {"ece"}
_NO_SCORES = ("total", "thresh", "threshold")  # ends of the names of what question answering logs beside its scores
_WHAT = {
    "divergence": "Divergence: the mean over tokens of KL(uniform ensemble ‖ model), in nats (lower is closer).",
    "exact_match": "Exact match, answer F1 and ROUGE-L: of greedily generated texts of at most task.generate.rows test "
    "rows, against the answers.",
    "nll": "NLL: negative log-likelihood (lower is better).",
}


def more_scores(analysis: Analysis, rows: Sequence[LeaderboardRow]) -> dict[str, Any]:
    """`columns`, `rows` of cells, and a `note`; {} if nothing else was measured. Means over seeds, on test.

    rows: those of the leaderboard.
    """
    known = {name.removeprefix(_TEST) for row in rows for run in row.arm.runs for name in run.metrics if _TEST in name}
    known = {name for name in known if not name.endswith(_NO_SCORES)}
    known -= {analysis.experiment.primary_metric, *_IN_LEADERBOARD}
    of_tokens = "perplexity" in known
    names = [name for name in _OF_LANGUAGE_MODELS if name in known] if of_tokens else sorted(known)
    if not names:
        return {}
    titles = [_OF_LANGUAGE_MODELS[name] if of_tokens else _title(name) for name in names]
    lines = [
        {
            "name": row.arm.name,
            "kind": row.arm.kind,
            "best": row.arm is analysis.best,
            "cells": [
                (title, _text(name, row.arm.mean(_TEST + name), analysis))
                for name, title in zip(names, titles, strict=True)
            ],
        }
        for row in rows
    ]
    return {"columns": titles, "rows": lines, "note": " ".join(text for name, text in _WHAT.items() if name in names)}


def _title(name: str) -> str:
    text = spelled(name).replace("_", " ")
    return text[0].upper() + text[1:]


def _text(name: str, value: float, analysis: Analysis) -> str:
    if math.isnan(value):
        return NONE
    if analysis.experiment.percent and (name in _SHARES or name.endswith(("f1", "exact"))):
        return f"{value:.1f}%"
    if name in _SHARES:
        return f"{value:.1%}"
    return f"{value:.{decimals(value, 3)}f}"
