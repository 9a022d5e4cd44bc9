"""How often teachers disagree on labelled training decisions, which is where correctness weighting acts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from raykd.common.late import Late
from raykd.common.remembered import remembered
from raykd.config.schema import Config
from raykd.experiment.scoring import parts_of, stored_logits
from raykd.logits import LogitStore, StoredLogits
from raykd.models.inputs import input_columns
from raykd.plan.prepare import Prepared
from raykd.teachers.serving import ServedTeacher

if TYPE_CHECKING:
    import torch

    from raykd.distillation import CorrectBy
else:
    torch = Late("torch")

_VERSION = 1  # increase it when `disagreement` gives other values


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
        return asdict(measure_disagreement(prepared, teachers, LogitStore.of(config), correct_by))

    rows = [member.splits["train"].digest for member in (prepared.student, *prepared.teachers.values())]
    identity = [_VERSION, [teacher.key.fingerprint for teacher in teachers], rows, correct_by]
    if config.task.predicts_values:
        identity.append(config.task.tolerance)
    return Disagreement(**remembered(config.store, "disagreement", identity, compute))


def measure_disagreement(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore, correct_by: CorrectBy
) -> Disagreement:
    """`disagreement`, measured from the stored logits. correct_by: as in `method`."""
    from raykd.distillation import has_value, teacher_weights, value_weights, weights_changed, wrong_values
    from raykd.distillation.packed import read_scores
    from raykd.distillation.weighting import weights_of

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
                len(logits),
                exists,
                labels,
                wrong=wrong_ones,
                weighting="correctness",
                W=0.0,
                all_wrong="skip",
                correct_by=correct_by,
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
