"""The objective of a task that predicts values: squared errors instead of divergences."""

from dataclasses import dataclass

import torch

from raykd.common.transfer import to_device
from raykd.distillation import DistillationLoss, has_value, value_loss, value_target, value_weights
from raykd.training.agreement import Counts
from raykd.training.loader import MicroBatch
from raykd.training.objective import Objective, Targets, counts_of


@dataclass(frozen=True)
class ValueObjective(Objective):
    """tolerance: the largest error of a teacher that is right; None: not needed by the method."""

    tolerance: float | None

    def targets(self, micro_batch: MicroBatch, device: torch.device) -> Targets:
        batch, method, labelled = micro_batch.batch, self.method, has_value(micro_batch.batch.labels)
        none = torch.zeros((), dtype=torch.int64)
        if micro_batch.logits is None:
            return Targets(batch.to(device), None, None, Counts(none, labelled.sum(), none, none))
        weights, distill = value_weights(
            micro_batch.logits,  # (M, B, 1, 2)
            batch.labels,
            weighting=method.weighting,
            W=method.W,
            all_wrong=method.all_wrong,
            correct_by=method.correct_by,
            tolerance=self.tolerance,
        )
        target = value_target(micro_batch.logits, weights)
        counts = counts_of(weights, distill, labelled, method.weighting)
        return Targets(batch.to(device), to_device(target, device), to_device(distill, device), counts)

    def loss(self, logits: torch.Tensor, targets: Targets, counts: Counts, alpha: float) -> DistillationLoss:
        return value_loss(
            logits,
            targets.target,
            targets.batch.labels,
            alpha=alpha,
            distill=targets.distill,
            counts=(counts.distilled, counts.labelled),
        )
