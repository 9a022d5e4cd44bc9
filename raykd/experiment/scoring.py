"""Scores the teachers and their ensemble from their stored logits, without their actors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln
from scipy.stats import binom

from raykd.data.encoding import id_column
from raykd.distillation import CorrectBy, teacher_weights, weights_changed
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.models.prediction import fed_columns
from raykd.plan.prepare import Prepared
from raykd.tasks import Evaluation
from raykd.teachers.serving import ServedTeacher

_AT_ONCE = 256  # rows


def stored_logits(prepared: Prepared, teachers: Sequence[ServedTeacher], split: str, store: LogitStore) -> StoredLogits:
    """Every teacher's logits of a split's rows, in the student's order."""
    members = [prepared.teachers[t.name].splits[split].open() for t in teachers]
    return StoredLogits(
        [TeacherLogits(store, t.key) for t in teachers],
        id_column(members[0], "row_id"),
        [id_column(rows, "input_hash") for rows in members],
    )


def score_teachers(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore
) -> list[dict[str, Evaluation]]:
    """Evaluations by split, of each teacher and, last, of the uniform ensemble (the mean of the logits)."""
    evaluations: list[dict[str, Evaluation]] = [{} for _ in range(len(teachers) + 1)]
    for split in ("validation", "test"):
        stored = stored_logits(prepared, teachers, split, store)
        encoded = [prepared.teachers[t.name].splits[split].open() for t in teachers]
        raw = prepared.splits[split].rows
        encoded.append(encoded[0])  # the ensemble's
        read = [rows.select_columns([*prepared.task.summary_columns]) for rows in encoded]
        summaries: list[list[Any]] = [[] for _ in evaluations]
        for start in range(0, len(stored), _AT_ONCE):
            positions = range(start, min(start + _AT_ONCE, len(stored)))
            rows = [stored[[i]][:, 0] for i in positions]  # each (M, H_i, C_i)
            each = [[row[m] for row in rows] for m in range(len(teachers))]
            each.append([row.astype(np.float32).mean(0) for row in rows])
            for m, logits in enumerate(each):
                summaries[m] += prepared.task.summarize(logits, read[m][positions])
        for m, found in enumerate(evaluations):
            calibration = found["validation"].calibration if split == "test" else None
            found[split] = prepared.task.evaluate(summaries[m], encoded[m], raw, calibration)
    return evaluations


_SIGNIFICANCE = 0.01  # of tests of whether a teacher's classes fit the labels


@dataclass(frozen=True)
class ClassOrder:
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


def class_order(label_names: Sequence[str], predictions: Sequence[Mapping[str, Any]]) -> ClassOrder | None:
    """Test whether a teacher's classes fit the labels; None if they do.

    predictions: of a classification task, of labelled rows.

    They do not fit if the teacher is right on significantly fewer rows than the most common label has (binomial test
    at 1%), or if another order of its classes is right on significantly more rows (sign test at 1% over the rows on
    which the two orders differ, with a Bonferroni correction for the number of orders).
    """
    numbers = {name: i for i, name in enumerate(label_names)}
    counts = np.zeros((len(numbers), len(numbers)), int)  # number of rows by predicted class and label
    for row in predictions:
        for answer, label in zip(np.atleast_1d(row["prediction"]), np.atleast_1d(row["label"]), strict=True):
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
    return ClassOrder(right / rows, most / rows, order, (right + max(0, gained - lost)) / rows)


@dataclass(frozen=True)
class Disagreement:
    """How often teachers disagree on labelled training decisions, which is where correctness weighting acts.

    changed: share of decisions that some teachers get right and others wrong, so that W changes their weights.
    all_wrong: share of decisions that every teacher gets wrong.
    right: per teacher, the share of decisions that it gets right.
    """

    changed: float
    all_wrong: float
    right: list[float]


def disagreement(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore, correct_by: CorrectBy
) -> Disagreement:
    """Measured once on all of `train`; the same for every method and every W below 1."""
    stored = stored_logits(prepared, teachers, "train", store)
    rows = fed_columns(prepared.student.splits["train"].open(), prepared.task)
    labelled, changed, wrong, right = 0, 0, 0, np.zeros(len(teachers))
    for labels, mask, logits in _batches(prepared, rows, stored):
        # Alone against a teacher that is never right, a teacher's weight tells whether it is right.
        weighed = teacher_weights(
            logits, labels, mask, weighting="correctness", W=0.0, all_wrong="skip", correct_by=correct_by
        )
        has_label = labels >= 0
        labelled += int(has_label.sum())
        changed += int((weights_changed(weighed.weights) & has_label).sum())
        wrong += int((~weighed.distill & has_label).sum())
        allowed = logits.float() if mask is None else logits.float().masked_fill(~mask, -torch.inf)
        right += ((allowed.argmax(-1) == labels) & has_label).sum((1, 2)).numpy()
    return Disagreement(changed / labelled, wrong / labelled, (right / labelled).tolist())


def _batches(
    prepared: Prepared, rows: datasets.Dataset, stored: StoredLogits
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    for start in range(0, len(rows), _AT_ONCE):
        positions = np.arange(start, min(start + _AT_ONCE, len(rows)))
        batch = prepared.task.collate(rows[positions], prepared.student.model.processor)
        yield batch.labels, batch.mask, torch.from_numpy(stored[positions])
