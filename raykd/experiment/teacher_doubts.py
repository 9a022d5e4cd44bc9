"""Signs that a given teacher was trained for other classes, or for values on another scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CORRELATED = 0.5  # Pearson's correlation of a teacher that knows the task
_SIGNIFICANCE = 0.01  # of tests of whether a teacher's classes fit the labels


@dataclass(frozen=True)
class ClassMisfit:
    """Evidence that a given teacher's classes do not fit the labels of the validation rows.

    right: share of rows on which it is right.
    majority: share of rows with the most common label.
    order: names of its classes, in its order, with which it would be right on most rows.
    right_in_order: that share of rows.
    """

    right: float
    majority: float
    order: tuple[str, ...]
    right_in_order: float

    def as_json(self) -> dict[str, Any]:
        return {
            "right": self.right,
            "majority": self.majority,
            "order": list(self.order),
            "right_in_order": self.right_in_order,
        }

    def warning(self, teacher: str) -> str:
        text = f"teacher {teacher} is right on {self.right:.1%} of the validation rows"
        if self.right < self.majority:
            text += f", which is below chance: the most common label has {self.majority:.1%}"
        if self.right_in_order == self.right:
            return f"{text}. No other order of its classes fits better: check that it was trained for this task"
        names = ", ".join(self.order[:10]) + (", ..." if len(self.order) > 10 else "")
        return (
            f"{text}. With its classes in the order {names} it would be right on {self.right_in_order:.1%}: check "
            f"id2label in its config.json and task.labels, or name its classes in teachers.{teacher}.labels"
        )


def class_misfit(label_names: Sequence[str], predictions: Sequence[Mapping[str, Any]]) -> ClassMisfit | None:
    """Test whether a teacher's classes fit the labels; None if they do.

    predictions: of a classification task, of labelled rows. A task of the user's own need not name their classes and
        labels: then nothing is tested.

    They do not fit if the teacher is right on significantly fewer rows than the most common label has (binomial test
    at 1%), or if another order of its classes is right on significantly more rows (sign test at 1% over the rows on
    which the two orders differ, with a Bonferroni correction for the number of orders).
    """
    from scipy.optimize import linear_sum_assignment  # scipy takes a second to import
    from scipy.special import gammaln
    from scipy.stats import binom

    numbers = {name: i for i, name in enumerate(label_names)}
    counts = np.zeros((len(numbers), len(numbers)), int)  # number of rows by predicted class and label
    for row in predictions:
        answers, given = np.atleast_1d(row["prediction"]), np.atleast_1d(row.get("label", ()))
        if len(answers) != len(given) or not {*answers.tolist(), *given.tolist()} <= numbers.keys():
            return None
        for answer, label in zip(answers, given, strict=True):
            counts[numbers[answer], numbers[label]] += 1
    rows, right, most = int(counts.sum()), int(np.trace(counts)), int(counts.sum(0).max())
    predicted, labels = linear_sum_assignment(counts, maximize=True)
    moved = predicted != labels
    gained, lost = int(counts[predicted, labels][moved].sum()), int(np.diag(counts)[moved].sum())
    below = binom.cdf(right, rows, most / rows) < _SIGNIFICANCE
    other = gained > lost and binom.logcdf(lost, gained + lost, 0.5) < np.log(_SIGNIFICANCE) - gammaln(len(numbers) + 1)
    if not below and not other:
        return None
    order = tuple(label_names[i] for i in labels) if gained > lost else tuple(label_names)
    return ClassMisfit(right / rows, most / rows, order, (right + max(0, gained - lost)) / rows)


def scale_misfit(predictions: Sequence[Mapping[str, Any]]) -> str:
    """A warning if a teacher of a regression is on another scale than the labels; "" if it is not.

    predictions: of labelled rows, with their labels, which a task of the user's own can leave out.

    It is if its values are correlated with the labels, but farther from them than the labels' mean is.
    """
    if not all("label" in row for row in predictions):
        return ""
    values = np.array([row["prediction"] for row in predictions], np.float64)
    labels = np.array([row["label"] for row in predictions], np.float64)
    if np.ptp(values) == 0 or np.corrcoef(values, labels)[0, 1] < _CORRELATED:
        return ""
    if ((values - labels) ** 2).mean() <= labels.var():
        return ""
    return (
        f"its values (mean {values.mean():.3g}, standard deviation {values.std():.3g} on the validation rows) are on "
        f"another scale than the labels (mean {labels.mean():.3g}, standard deviation {labels.std():.3g}). Convert the "
        "labels to its scale, or train it here (recipe: {})"
    )
