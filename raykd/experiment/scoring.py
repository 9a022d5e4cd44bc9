"""Scores the teachers and their ensemble from their stored logits, without their actors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raykd.common.memory import remembered
from raykd.config.schema import Config
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.plan.job import RESULT
from raykd.plan.prepare import Prepared
from raykd.tasks import Evaluation
from raykd.tasks.generated import METRICS
from raykd.teachers.serving import ServedTeacher

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 256, 2**28
_VERSION = 1  # increase it when `disagreement` gives other values


def stored_logits(prepared: Prepared, teachers: Sequence[ServedTeacher], split: str, store: LogitStore) -> StoredLogits:
    """Every teacher's logits of a split's rows, in the student's order."""
    members = [prepared.teachers[t.name].splits[split].open() for t in teachers]
    return StoredLogits(
        [TeacherLogits(store, t.key) for t in teachers],
        id_column(members[0], "row_id"),
        [id_column(rows, "input_hash") for rows in members],
        widths_differ=teachers[0].keep.form == "hidden",
    )


def parts_of(stored: StoredLogits) -> Iterator[range]:
    """Positions of consecutive rows whose logits are held at the same time: up to 256 rows, and up to 256 MB.

    A row that is larger is a part of its own.
    """
    start, teachers = 0, len(stored.sources)
    while start < len(stored):
        shapes = stored.shapes[start : start + _ROWS_AT_ONCE].astype(np.int64)
        # Rows are padded to the largest H and C of their batch. 2 bytes: fp16.
        held = np.arange(1, len(shapes) + 1) * np.maximum.accumulate(shapes, axis=0).prod(1) * 2 * teachers
        rows = max(1, int(np.searchsorted(held, _BYTES_AT_ONCE, side="right")))
        yield range(start, start + rows)
        start += rows


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
        for positions in parts_of(stored):
            rows = [stored[[i]][:, 0] for i in positions]  # each (M, H_i, C_i)
            if prepared.task.predicts_tokens:
                each = _token_scores(
                    prepared, rows, encoded[0].select_columns(["labels"])[positions]["labels"], teachers, store
                )
            else:
                each = [[row[m] for row in rows] for m in range(len(teachers))]
                each.append([row.astype(np.float32).mean(0) for row in rows])
            for m, logits in enumerate(each):
                summaries[m] += prepared.task.summarize(logits, read[m][positions])
        for m, found in enumerate(evaluations):
            calibration = found["validation"].calibration if split == "test" else None
            found[split] = prepared.task.evaluate(summaries[m], encoded[m], raw, calibration)
    return evaluations


def _token_scores(
    prepared: Prepared,
    rows: Sequence[np.ndarray],
    labels: Sequence[Sequence[int]],
    teachers: Sequence[ServedTeacher],
    store: LogitStore,
) -> list[list[np.ndarray]]:
    """What a task over a vocabulary summarizes: (H_i, 6) of each row, by teacher and, last, of the ensemble."""
    from raykd.models.packing import scores_of_ensemble  # imports torch

    task, first = prepared.task, prepared.student.splits["validation"].open()
    classes = int(task.shapes(first.select_columns([*task.shape_columns])[:1])[0, 1])
    return scores_of_ensemble(rows, labels, classes, teachers[0].keep, store, [t.key for t in teachers])


def generated_metrics(served: ServedTeacher) -> dict[str, float]:
    """The scores of what a teacher that was trained here has generated at the end of its training, on test.

    {} for one of several folds, whose models have written different texts.
    """
    folder = Path(served.models[0].pretrained or "")  # TRAINING/generation-1/model
    if len(served.models) > 1:
        return {}
    result = json.loads((folder.parents[1] / RESULT).read_text())
    test = result["generations"][result["best"]]["test"]
    return {name: test[name] for name in METRICS if name in test}


_CORRELATED = 0.5  # Pearson's correlation of a teacher that knows the task
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
    return ClassOrder(right / rows, most / rows, order, (right + max(0, gained - lost)) / rows)


def other_scale(predictions: Sequence[Mapping[str, Any]]) -> str:
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


def disagreement(config: Config, prepared: Prepared, teachers: Sequence[ServedTeacher]) -> Disagreement | None:
    """Measured once on all of `train`; the same for every method and every W below 1. Remembered in the store.

    None if the task predicts values and `task.tolerance` does not say when one is right.
    """
    correct_by = config.method.correct_by
    if config.task.predicts_values and config.task.tolerance is None:
        return None

    def compute() -> dict[str, Any]:
        from raykd.experiment.disagreement import measure  # imports torch

        return asdict(measure(prepared, teachers, LogitStore.of(config), correct_by))

    rows = [member.splits["train"].digest for member in (prepared.student, *prepared.teachers.values())]
    identity = [_VERSION, [teacher.key.fingerprint for teacher in teachers], rows, correct_by]
    if config.task.predicts_values:
        identity.append(config.task.tolerance)
    return Disagreement(**remembered(config.store, "disagreement", identity, compute))
