"""How often teachers disagree on labelled training decisions, which is where correctness weighting acts."""

from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch

from raykd.distillation import CorrectBy, has_value, teacher_weights, value_weights, weights_changed, wrong_values
from raykd.distillation.packed import read_scores
from raykd.distillation.weighting import weights_of
from raykd.experiment.scoring import Disagreement, parts_of, stored_logits
from raykd.logits import LogitStore, StoredLogits
from raykd.models.prediction import input_columns
from raykd.plan.prepare import Prepared
from raykd.teachers.serving import ServedTeacher


def measure(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore, correct_by: CorrectBy
) -> Disagreement:
    """Measured once on all of `train`; the same for every method and every W below 1."""
    stored, keep = stored_logits(prepared, teachers, "train", store), teachers[0].keep
    rows = input_columns(prepared.student.splits["train"].open(), prepared.task)
    values, tolerance = prepared.task.predicts_values, prepared.task.settings.tolerance
    labelled, changed, wrong, right = 0, 0, 0, np.zeros(len(teachers))
    for labels, mask, logits in _batches(prepared, rows, stored):
        # Alone against a teacher that is never right, a teacher's weight tells whether it is right.
        has_label = has_value(labels) if values else labels >= 0
        if values:
            assert tolerance is not None
            correct = ~wrong_values(logits, labels, tolerance)
            weighed = value_weights(
                logits,
                labels,
                weighting="correctness",
                W=0.0,
                all_wrong="skip",
                correct_by=correct_by,
                tolerance=tolerance,
            )
        elif keep.packed:
            assert mask is not None
            correct = read_scores(logits).choice == labels
            wrong_ones = ~correct & has_label
            exists = mask[..., 0]
            weighed = weights_of(
                len(logits), exists, labels, wrong_ones, None, "correctness", 0.0, "skip", correct_by, 1.0
            )
        else:
            weighed = teacher_weights(
                logits, labels, mask, weighting="correctness", W=0.0, all_wrong="skip", correct_by=correct_by
            )
            allowed = logits.float() if mask is None else logits.float().masked_fill(~mask, -torch.inf)
            correct = allowed.argmax(-1) == labels
        labelled += int(has_label.sum())
        changed += int((weights_changed(weighed.weights) & has_label).sum())
        wrong += int((~weighed.distill & has_label).sum())
        right += (correct & has_label).sum((1, 2)).numpy()
    return Disagreement(changed / labelled, wrong / labelled, (right / labelled).tolist())


def _batches(
    prepared: Prepared, rows: datasets.Dataset, stored: StoredLogits
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    for positions in parts_of(stored):
        batch = prepared.task.collate(rows[positions], prepared.student.model.processor)
        yield batch.labels, batch.mask, torch.from_numpy(stored[positions])
