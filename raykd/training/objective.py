"""What turns logits and labels into a loss: the method's weights, target, divergence and schedule."""

from dataclasses import dataclass

import torch

from raykd.common.transfer import to_device
from raykd.config.methods import Method
from raykd.distillation import (
    DistillationLoss,
    alpha_at,
    distillation_loss,
    ensemble_target,
    teacher_weights,
    weights_changed,
)
from raykd.distillation.own import function_or_name
from raykd.tasks import Batch
from raykd.training.agreement import Counts
from raykd.training.loader import MicroBatch


def counts_of(weights: torch.Tensor, distill: torch.Tensor, labelled: torch.Tensor, weighting: str) -> Counts:
    """Of a micro-batch with teachers, on the host.

    weights: (M, B, H).
    distill, labelled: (B, H) bool.
    weighting: the method's. The decisions whose weights W changes are counted for `correctness` alone.
    """
    none = torch.zeros((), dtype=torch.int64)
    acts = weighting == "correctness"
    changed = (weights_changed(weights) & labelled).sum() if acts else none
    return Counts(distill.sum(), labelled.sum(), changed, labelled.sum() if acts else none)


@dataclass(frozen=True)
class Targets:
    """What a micro-batch is taught, on the device.

    batch: its inputs and labels.
    target: (B, H, C) the ensemble's distribution, or its logarithm, as the method's divergence needs it; (B, H) where
        models predict values; None where nothing is distilled.
    distill: (B, H) bool, the decisions that are distilled; None likewise.
    counts: of this micro-batch, on the host.
    """

    batch: Batch
    target: torch.Tensor | None
    distill: torch.Tensor | None
    counts: Counts


@dataclass(frozen=True)
class Objective:
    """A method over a planned number of optimizer steps."""

    method: Method
    steps: int

    def alpha(self, step: int) -> float:
        """The weight of the teachers' term in step 0..steps-1."""
        return alpha_at(step / self.steps, self.method.alpha, self.method.schedule, self.method.floor)

    def targets(self, micro_batch: MicroBatch, device: torch.device) -> Targets:
        """Computed on the host: it is little work, and reading a count back from a GPU would synchronize with it."""
        batch, method, labelled = micro_batch.batch, self.method, micro_batch.batch.labels >= 0
        none = torch.zeros((), dtype=torch.int64)
        if micro_batch.logits is None:
            return Targets(batch.to(device), None, None, Counts(none, labelled.sum(), none, none))
        weights, distill = teacher_weights(
            micro_batch.logits,  # (M, B, H, C)
            batch.labels,
            batch.mask,
            weighting=function_or_name(method.weighting, "method.weighting"),
            W=method.W,
            all_wrong=method.all_wrong,
            correct_by=method.correct_by,
            weight_temperature=method.weight_temperature,
        )
        log = method.divergence != "forward_kl"
        target = ensemble_target(micro_batch.logits, weights, method.temperature, batch.mask, method.pool, log)
        counts = counts_of(weights, distill, labelled, method.weighting)
        return Targets(batch.to(device), to_device(target, device), to_device(distill, device), counts)

    def loss(self, logits: torch.Tensor, targets: Targets, counts: Counts, alpha: float) -> DistillationLoss:
        """This micro-batch's share of the step's loss.

        logits: (B, H, C) the student's.
        counts: of the whole step, over all micro-batches and workers.
        """
        return distillation_loss(
            logits,
            targets.target,
            targets.batch.labels,
            alpha=alpha,
            temperature=self.method.temperature,
            mask=targets.batch.mask,
            distill=targets.distill,
            counts=(counts.distilled, counts.labelled),
            scale_by_t2=self.method.scale_by_t2,
            epsilon=self.method.epsilon,
            divergence=function_or_name(self.method.divergence, "method.divergence"),
            beta=self.method.beta,
            labels_checked=True,  # by the loader, on the host
        )
