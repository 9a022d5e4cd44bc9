"""What the stored test predictions of a classification say: recall by class, calibration, agreement, disagreements.

It compares one model of the best student with the ensemble, row by row: that of the seed that is best on validation,
which is the one that a command registers, and names at its end.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raykd.common.metrics import higher_is_better
from raykd.reports.analysis import Analysis
from raykd.reports.arms import Arm
from raykd.reports.read import Child

BINS, EXAMPLES, CLASSES = 10, 10, 30  # of the reliability diagram; shown; classes that a table has room for


@dataclass(frozen=True)
class Details:
    """Of the student and of the ensemble, in that order where there are two.

    seed: the student's run.
    recalls: by class, its test examples and the share that each of the two predicts as that class.
    agreement: share of test examples with the same prediction.
    differing: rows in which the predictions differ, the surest first, as text: id, label, both predictions,
        and the row's own `text` or `picture` (PNG in base64), "" if that is not known.
    reliability: for both, by bin that has examples: mean confidence, share that is right, examples.
    """

    seed: str
    recalls: list[tuple[str, int, float, float]]
    agreement: float
    differing: list[dict[str, str]]
    reliability: tuple[list[tuple[float, float, int]], list[tuple[float, float, int]]]


def details(analysis: Analysis) -> Details | None:
    """None without predictions that have one label and one confidence each, as a classification writes them."""
    student, ensemble = _rows(analysis, analysis.best), _rows(analysis, analysis.ensemble)
    if student is None or ensemble is None or [r["id"] for r in student[1]] != [r["id"] for r in ensemble[1]]:
        return None
    run, ours = student
    theirs = ensemble[1]
    pairs = list(zip(ours, theirs, strict=True))
    by_label: dict[str, list[tuple[bool, bool]]] = {}
    for a, b in pairs:
        right = a["prediction"] == a["label"], b["prediction"] == a["label"]
        by_label.setdefault(str(a["label"]), []).append(right)
    shares = {label: np.mean(found, axis=0) for label, found in by_label.items()}
    recalls = [(label, len(by_label[label]), float(of[0]), float(of[1])) for label, of in sorted(shares.items())]
    differ = sorted((p for p in pairs if p[0]["prediction"] != p[1]["prediction"]), key=lambda p: -p[0]["confidence"])
    return Details(
        run.name,
        recalls,
        1 - len(differ) / len(pairs),
        [
            {
                "id": str(a["id"]),
                "label": str(a["label"]),
                "student": f"{a['prediction']} ({a['confidence']:.0%})",
                "ensemble": f"{b['prediction']} ({b['confidence']:.0%})",
                "text": "",
                "picture": "",
            }
            | analysis.experiment.examples.get(str(a["id"]), {})
            for a, b in differ[:EXAMPLES]
        ],
        (reliability(ours), reliability(theirs)),
    )


def _rows(analysis: Analysis, arm: Arm | None) -> tuple[Child, list[dict[str, Any]]] | None:
    """The arm's run that is best on validation, and its test predictions, if each has one label and a confidence."""
    if arm is None or "test" not in arm.scores:
        return None
    experiment = analysis.experiment

    def validation(run: Child) -> float:
        value = run.validation(experiment.metric)
        return -math.inf if value is None else higher_is_better(experiment.metric, value)

    run = max(arm.runs, key=validation)
    rows = experiment.prediction_rows(run, "test")
    if not rows or any(not isinstance(row.get("label"), str | int) or "confidence" not in row for row in rows):
        return None
    return run, rows


def reliability(rows: list[dict[str, Any]]) -> list[tuple[float, float, int]]:
    """Guo et al. 2017, section 2: by bin of equal width that has rows, mean confidence, share right and rows."""
    confidence = np.array([row["confidence"] for row in rows], float)
    right = np.array([row["prediction"] == row["label"] for row in rows], float)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        (float(confidence[bins == k].mean()), float(right[bins == k].mean()), int((bins == k).sum()))
        for k in range(BINS)
        if (bins == k).any()
    ]
