"""Teachers and their ensemble, scored from the store: long after their actors are gone, by what they serve."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch

from raykd.data.encoding import id_column
from raykd.distillation import CorrectBy, teacher_weights, weights_changed
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.models.prediction import fed_columns
from raykd.plan.prepare import Prepared
from raykd.tasks import Evaluation
from raykd.teachers.serving import ServedTeacher


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
    """By split, each teacher's evaluation and, last, the uniform ensemble's (the mean of their logits)."""
    found: list[dict[str, Evaluation]] = [{} for _ in range(len(teachers) + 1)]
    for split in ("validation", "test"):
        stored = stored_logits(prepared, teachers, split, store)
        encoded = [prepared.teachers[t.name].splits[split].open() for t in teachers]
        raw = prepared.splits[split].rows
        rows = [stored[[i]][:, 0] for i in range(len(stored))]  # each (M, H, C_i)
        for m in range(len(teachers) + 1):
            if m < len(teachers):
                logits, inputs = [row[m] for row in rows], encoded[m]
            else:
                logits, inputs = [row.astype(np.float32).mean(0) for row in rows], encoded[0]
            chosen = found[m]["validation"].calibration if split == "test" else None
            found[m][split] = prepared.task.evaluate(logits, inputs, raw, chosen)
    return found


@dataclass(frozen=True)
class Disagreement:
    """What correctness weighting has to act on, over the labelled training rows.

    changed: share of decisions that some teachers get right and others wrong: whose weights W changes.
    all_wrong: share that every teacher gets wrong. right: per teacher, the share that it gets right.
    """

    changed: float
    all_wrong: float
    right: list[float]


def disagreement(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore, correct_by: CorrectBy
) -> Disagreement:
    """Measured once on the whole of `train`, the same for every method and every W below 1."""
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
    for start in range(0, len(rows), 256):
        positions = np.arange(start, min(start + 256, len(rows)))
        batch = prepared.task.collate(rows[positions], prepared.student.processor)
        yield batch.labels, batch.mask, torch.from_numpy(stored[positions])
