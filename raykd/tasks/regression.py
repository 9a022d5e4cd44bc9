"""Regression: a text, or a pair of texts, has a value, such as how alike the two are.

A decision is a value v in the form of two logits, (0, v), see `raykd.distillation.values`. Labels are floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.late import Late
from raykd.tasks.common import Batch, Evaluation
from raykd.tasks.padding import pad_tokens
from raykd.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


class Regression(TextClassification):
    """H = 1, C = 2.

    The primary metric is Pearson's correlation, as published for the STS benchmark (Cer et al. 2017).
    """

    array_columns = ("input_ids", "token_type_ids")
    primary_metric = "pearson"
    metric_names = ("pearson", "spearman", "mse")
    share = False
    graded_rows = False
    named_classes = False
    predicts_values = True
    problem_type = "regression"

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "regression", "max_length": self.settings.max_length}

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        """Labels are checked by `raykd.data.values`, and texts as for every task."""

    def chance(self, rows: Dataset) -> float:
        """The correlation of one value for all rows, such as the labels' mean: it counts as 0."""
        return 0.0

    def encoded_labels(self, rows: dict[str, list], labelled: bool) -> list[list[float]]:  # type: ignore[override]
        return [[float(y)] for y in rows[self.label_column]] if labelled else [[math.nan]] * len(rows[self.columns[0]])

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.tile([1, 2], (len(rows["length"]), 1))

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        inputs, before = pad_tokens(rows, self.model_inputs, processor, self.pad_to, self.settings.max_length)
        return Batch(inputs, torch.from_numpy(np.asarray(rows["labels"], np.float32)), before=before)

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return torch.stack([torch.zeros_like(outputs.logits), outputs.logits], dim=-1)  # (B, 1) -> (B, 1, 2)

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[float]:
        """Each row's value."""
        return [float(row[0, 1]) - float(row[0, 0]) for row in logits]

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """The value."""
        return [{"prediction": value} for value in self.summarize(logits, {})]

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        """Pearson's correlation r is no mean over rows, so a row's score is r plus the row's influence on it.

        With x and y the standardized predictions and labels, the score is r + x y - r (x^2 + y^2) / 2 (the influence
        function of the correlation: Devlin, Gnanadesikan and Kettenring 1975). The mean of these scores is exactly r,
        and their spread is that of r over samples of rows. They do not grade single rows.
        """
        gold, predicted = np.asarray(raw[self.label_column][:], np.float64), np.asarray(summaries, np.float64)
        x, y = standardized(predicted), standardized(gold)
        r = float((x * y).mean())
        scores = r + x * y - r * (x**2 + y**2) / 2
        metrics = {
            "pearson": r,
            "spearman": float((standardized(ranks(predicted)) * standardized(ranks(gold))).mean()),
            "mse": float(((predicted - gold) ** 2).mean()),
        }
        predictions = [
            {"id": i, "prediction": p, "label": y, "score": score}
            for i, (p, y, score) in enumerate(zip(predicted.tolist(), gold.tolist(), scores.tolist(), strict=True))
        ]
        return Evaluation(metrics, scores, predictions)


def standardized(values: np.ndarray) -> np.ndarray:
    """(N,) values with mean 0 and standard deviation 1. If all are equal: 0, so that their correlations are 0."""
    centred = values - values.mean()
    deviation = centred.std()
    return centred / deviation if np.ptp(values) > 0 else np.zeros_like(centred)


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) float: each value's rank from 1, the mean rank for equal values. As scipy.stats.rankdata."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
