"""Multi-label classification: any number of the labels apply to a text, or to a pair of them.

A decision is a label, and its two classes are "no" and "yes" with the logits (0, z), where z is the model's logit.
Their softmax is (1 - sigmoid(z), sigmoid(z)), and sigmoid(z / T) at temperature T, so all of the arithmetic of
classification holds for each label: its cross-entropy is the binary one, and a teacher is wrong on a label if the sign
of z is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.tasks.common import NO_LABEL, Batch, Evaluation
from raykd.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


class MultiLabelClassification(TextClassification):
    """H = the labels, C = 2.

    The primary metric is macro F1, in which a rare label counts as much as a common one, as published for GoEmotions
    (Demszky et al. 2020). Mean average precision needs no threshold, but it has no share of a single row, so there
    would be no interval over rows.
    """

    primary_metric = "macro_f1"
    metric_names = ("macro_f1", "micro_f1", "mean_average_precision", "nll")
    label_column = "labels"
    label_lists = True
    problem_type = "multi_label_classification"
    graded_rows = False

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "multi-label-classification", "max_length": self.settings.max_length}

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        most = len(self.label_names) - 1
        for row, numbers in enumerate(rows[self.label_column][:] if labelled else []):
            if numbers and not 0 <= min(numbers) <= max(numbers) <= most:
                reason = f"it has a label outside 0..{most}"
                raise ConfigError(f"data.{split}", f"row {row}", reason, "Name every label in task.labels")

    def unmeasurable(self, rows: Dataset) -> dict[str, str]:
        if any(rows[self.label_column][:]):
            return {}
        return {name: "none of its rows has a label" for name in ("macro_f1", "micro_f1", "mean_average_precision")}

    def chance(self, rows: Dataset) -> float:
        """The macro F1 of every label that occurs, given to all rows: 2 count / (rows + count) each."""
        counts = self._indicators(rows[self.label_column][:]).sum(0)
        counts = counts[counts > 0]
        return float((2 * counts / (len(rows) + counts)).mean()) if len(counts) else 0.0

    def encoded_labels(self, rows: dict[str, list], labelled: bool) -> list[list[int]]:
        if not labelled:
            return [[NO_LABEL] * len(self.label_names) for _ in rows[self.columns[0]]]
        return self._indicators(rows[self.label_column]).astype(int).tolist()

    def _indicators(self, lists: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, H) bool from the numbers of each row's labels."""
        indicators = np.zeros((len(lists), len(self.label_names)), bool)
        for row, numbers in enumerate(lists):
            indicators[row, list(numbers)] = True
        return indicators

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.tile([len(self.label_names), 2], (len(rows["length"]), 1))

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return torch.stack([torch.zeros_like(outputs.logits), outputs.logits], dim=-1)  # (B, H) -> (B, H, 2)

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[np.ndarray]:
        """Of each row: z of each label, (H,) float32."""
        return [row[:, 1].astype(np.float32) - row[:, 0].astype(np.float32) for row in logits]

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """The labels that reach the threshold, 0.5 if none was chosen, and the probability of every label."""
        from scipy.special import expit  # scipy takes a second to import, and only predictions need it

        threshold = calibration.get("threshold", 0.0)
        found = []
        for z in self.summarize(logits, {}):
            probabilities = dict(zip(self.label_names, expit(z.astype(np.float64)).tolist(), strict=True))
            found.append({"prediction": self._names(z >= threshold), "probabilities": probabilities})
        return found

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        """A label is predicted if its logit reaches a threshold, the one with the best macro F1 on validation.

        The macro F1 is over the labels that the split's rows have, the same ones for every model. A label's F1 is a
        ratio of sums over rows, 2 right / (predicted + gold). So a row's score is the mean over the labels of its
        linearized share, F1 + (2 c - F1 (p + g)) * rows / (predicted + gold), where c, p and g are 0 or
        1: whether the row has the label rightly predicted, predicted, and as gold (the ratio estimator: Cochran 1977,
        chapter 6). The mean of these scores is exactly the macro F1, and their spread is that of the macro F1 over
        samples of rows. They do not grade single rows: some lie outside of 0..1.
        """
        gold = self._indicators(raw[self.label_column][:])  # (N, H)
        z = np.stack(summaries).astype(np.float64)
        calibration = {"threshold": best_threshold(gold, z)} if calibration is None else calibration
        predicted = z >= calibration["threshold"]
        right = gold & predicted
        either = predicted.sum(0) + gold.sum(0)
        occurs = gold.any(0)
        f1 = 2 * right.sum(0)[occurs] / either[occurs]
        own = 2.0 * right[:, occurs] - f1 * (predicted[:, occurs] + gold[:, occurs].astype(int))
        scores = f1.mean() + (own * len(gold) / either[occurs]).mean(1) if occurs.any() else np.zeros(len(gold))
        metrics = {
            "macro_f1": float(f1.mean()) if occurs.any() else 0.0,
            "micro_f1": float(2 * right.sum() / max(either.sum(), 1)),
            "mean_average_precision": mean_average_precision(gold, z),
            "nll": float(np.logaddexp(0, np.where(gold, -z, z)).mean()),  # of a decision
        }
        predictions = [
            {"id": i, "prediction": self._names(p), "label": self._names(g), "score": float(score)}
            for i, (p, g, score) in enumerate(zip(predicted, gold, scores, strict=True))
        ]
        return Evaluation(metrics, scores, predictions, calibration)

    def _names(self, indicators: np.ndarray) -> list[str]:
        return [self.label_names[i] for i in np.flatnonzero(indicators)]


def best_threshold(gold: np.ndarray, z: np.ndarray) -> float:
    """The threshold, the same for all labels, with the highest macro F1; halfway between two logits.

    gold: (N, H) bool.
    z: (N, H) logits.

    With the logits in descending order, each further one changes one label's F1, so running sums give the sum of all
    at every possible threshold.
    """
    order = np.argsort(-z, axis=0, kind="stable")
    right = np.take_along_axis(gold, order, axis=0).cumsum(0)
    f1 = 2 * right / (np.arange(1, len(z) + 1)[:, None] + gold.sum(0))  # (N, H), with a label's first n predicted
    change = np.diff(f1, axis=0, prepend=0)
    descending = np.take_along_axis(z, order, axis=0).ravel()
    every = np.argsort(-descending, kind="stable")
    values, total = descending[every], change.ravel()[every].cumsum()  # labels that no row has add nothing
    last = np.append(values[1:] < values[:-1], True)  # of equal logits, all are predicted or none
    values, total = values[last], total[last]
    best = int(total.argmax())
    return float(values[best] + values[min(best + 1, len(values) - 1)]) / 2


def mean_average_precision(gold: np.ndarray, z: np.ndarray) -> float:
    """The mean, over the labels that occur, of the precision at each recall; 0 if none occurs.

    gold: (N, H) bool.
    z: (N, H) logits.

    Equals scikit-learn's average_precision_score of these labels (average="macro"): equal logits have one precision.
    """
    found = []
    for label in np.flatnonzero(gold.any(0)):
        order = np.argsort(-z[:, label], kind="stable")
        values, right = z[order, label], gold[order, label].cumsum()
        last = np.append(values[1:] < values[:-1], True)
        right, predicted = right[last], np.flatnonzero(last) + 1
        found.append(float((np.diff(right, prepend=0) * right / predicted).sum() / right[-1]))
    return float(np.mean(found)) if found else 0.0
