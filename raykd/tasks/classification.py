"""The common part of image and text classification: one decision per row (H = 1), and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.units import rows_that
from raykd.tasks.common import NO_LABEL, Batch, Evaluation, Task

if TYPE_CHECKING:
    import torch

CALIBRATION_BINS = 15  # Guo et al. 2017


class Classification(Task):
    primary_metric = "accuracy"
    metric_names: tuple[str, ...] = ("accuracy", "macro_f1", "nll", "ece")
    label_column = "label"
    named_classes = True

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        if not labelled:
            return
        labels = np.asarray(rows[self.label_column][:])
        bad = np.flatnonzero((labels < 0) | (labels >= len(self.label_names)))
        if len(bad):
            raise ConfigError(
                f"data.{split}",
                int(labels[bad[0]]),
                f"{rows_that(bad, 'has', 'have')} a label outside 0..{len(self.label_names) - 1}",
                "Give every class in task.labels, or a split whose labels are public",
            )

    def chance(self, rows: Dataset) -> float:
        """The share of the most common label."""
        return float(np.bincount(np.asarray(rows[self.label_column][:])).max() / len(rows))

    def other_chances(self, rows: Dataset) -> dict[str, float]:
        """The macro F1 of answers drawn as often as the K classes occur, 1 / K, and two of its standard errors.

        If a share p of the N rows has a class and a share q of the answers, its F1 is 2pq / (p + q) on average. The
        sum over the classes is largest at q = p, where it is that of the p, 1. There the variance of a class's F1 is
        about (1 - p)^2 / N, and the covariance of two classes' p p' / N. So that of the mean over the classes is
        (K - 1) / (K^2 N), whatever the p are.
        """
        classes = len(np.unique(np.asarray(rows[self.label_column][:])))
        return {"macro_f1": float(1 / classes + 2 * np.sqrt((classes - 1) / len(rows)) / classes)}

    def encoded_labels(self, rows: dict[str, list], labelled: bool) -> list[list[int]]:
        count = len(rows[self.columns[0]])
        return [[y] for y in rows[self.label_column]] if labelled else [[NO_LABEL]] * count

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.tile([1, len(self.label_names)], (len(rows["length"]), 1))

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return outputs.logits.unsqueeze(1)  # (B, C) -> (B, 1, C)

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[Any]:
        """Of each row: the predicted class, its log-probability, and that of the gold class."""
        log_p = _log_probabilities(logits)
        of_gold = np.take_along_axis(log_p, np.asarray(rows["labels"]), axis=1)[:, 0]
        return list(zip(log_p.argmax(1).tolist(), log_p.max(1).tolist(), of_gold.tolist(), strict=True))

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """The class and the probability of every class."""
        names = self.label_names
        return [
            {
                "prediction": names[int(row.argmax())],
                "confidence": float(row.max()),
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
            }
            for row in np.exp(_log_probabilities(logits))
        ]

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        gold = np.asarray(raw[self.label_column][:])
        predicted, highest, of_gold = (np.array(column) for column in zip(*summaries, strict=True))
        right = (predicted == gold).astype(np.float64)
        confidence = np.exp(highest)
        metrics = {
            "accuracy": float(right.mean()),
            "macro_f1": macro_f1(gold, predicted),
            "nll": float(-of_gold.mean()),
            "ece": calibration_error(confidence, right),
        }
        predictions = [
            {
                "id": i,
                "prediction": self.label_names[p],
                "label": self.label_names[y],
                "confidence": round(float(c), 6),
                "score": float(r),
            }
            for i, (p, y, c, r) in enumerate(zip(predicted, gold, confidence, right, strict=True))
        ]
        return Evaluation(metrics, right, predictions)


def _log_probabilities(logits: Sequence[np.ndarray]) -> np.ndarray:
    """(B, C) float64 from (1, C) logits of each of B rows."""
    scores = np.stack([row[0] for row in logits]).astype(np.float64)
    scores -= scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 over all classes that occur in `gold` or `predicted`, (N,) class numbers each.

    Equals scikit-learn's f1_score(average="macro"). Importing scikit-learn would add a fifth to the start of every
    training process.
    """
    classes = max(gold.max(), predicted.max()) + 1
    both = np.bincount(gold[gold == predicted], minlength=classes)
    each = np.bincount(gold, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * both[each > 0] / each[each > 0]).mean())


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 5): 15 bins of equal width.

    confidence: (N,) probability of the predicted class.
    right: (N,) whether it was right.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(right))
