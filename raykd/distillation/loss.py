"""The student's loss: imitate the teachers, and fit the labels."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from raykd.distillation.decisions import (
    MASKED_LOGIT,
    NO_LABEL,
    check_bool,
    check_choice,
    check_fraction,
    check_labels,
    check_shape,
    check_temperature,
    existing_decisions,
    fill_masked,
)
from raykd.distillation.divergences import DIVERGENCES, Divergence, decision_divergence
from raykd.distillation.own import OwnFunction

Count = int | float | torch.Tensor


class DistillationLoss(NamedTuple):
    """Three scalars, in fp32 or in the precision of `counts`. Each is this batch's share of a sum over all ranks and
    micro-batches.

    loss: the objective.
    distillation: the average divergence, before alpha and T^2; detached. 0 if alpha is 0, where it is not computed.
    label: the average label term, before 1 - alpha; detached.
    """

    loss: torch.Tensor
    distillation: torch.Tensor
    label: torch.Tensor


def distillation_loss(
    student_logits: torch.Tensor,
    target: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    mask: torch.Tensor | None = None,
    distill: torch.Tensor | None = None,
    counts: tuple[Count, Count] | None = None,
    scale_by_t2: bool = True,
    epsilon: float = 0.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    labels_checked: bool = False,
) -> DistillationLoss:
    """`alpha T^2 D(target, softmax(s / T)) + (1 - alpha) CE(s, label)`, each term an average. D is KL by default.

    student_logits: (B, H, C) float, any dtype; converted to fp32.
    target: (B, H, C) probabilities, or their logarithms if `divergence` is not "forward_kl"; None if alpha is 0.
    labels: (B, H) int64, -100 for no label.
    alpha: weight of the distillation term, from 0 to 1.
    temperature: T, above 0.
    mask: (B, H, C) bool, the allowed classes; None allows all.
    distill: (B, H) bool, the decisions to distil; None for all that exist.
    counts: number of (distilled, labelled) decisions over all ranks and micro-batches of the optimizer step, as numbers
        or scalar tensors; None: those of this batch. A batch with none of them contributes 0, with a gradient of 0.
    scale_by_t2: whether to multiply the distillation term by T^2.
    epsilon: label smoothing of the label term, uniform over allowed classes (Szegedy et al. 2016, section 7).
    divergence, beta: as in `decision_divergence`.
    labels_checked: `check_labels` has been called already; on a GPU the check would wait for the device.

    Source: Hinton et al. 2015, section 2: the sum of both cross-entropies, and T^2 because the soft targets' gradients
    scale as 1 / T^2. The KL divergence replaces the cross-entropy with the teachers: it has the same gradient,
    and is 0 where the student agrees.

    Raises ValueError for an invalid setting, a shape that does not match, or a label on a class that is not allowed.
    The caller must check that the loss is finite, when it reads the loss.
    """
    check_fraction("alpha", alpha)
    check_temperature(temperature)
    check_fraction("epsilon", epsilon)
    if not isinstance(divergence, OwnFunction):
        check_choice("divergence", divergence, DIVERGENCES)
    check_shape("labels", labels, student_logits.shape[:2])
    check_shape("mask", mask, student_logits.shape)
    check_bool("mask", mask)
    check_shape("distill", distill, labels.shape)
    check_bool("distill", distill)
    if not labels_checked:
        check_labels(labels, student_logits.shape[-1], mask)

    student_logits = student_logits.float()
    log_probs = torch.log_softmax(fill_masked(student_logits, mask, MASKED_LOGIT), -1)
    labelled_count = at_least_one((labels != NO_LABEL).sum() if counts is None else counts[1])
    label = _label_sum(log_probs, labels, mask, epsilon) / labelled_count
    if alpha == 0:
        return DistillationLoss(label, torch.zeros_like(label), label.detach())

    if target is None:
        raise ValueError(f"target = None: needed with alpha = {alpha}")
    check_shape("target", target, student_logits.shape)
    exists = existing_decisions(labels.shape, mask, labels.device)
    distill = exists if distill is None else distill & exists
    if temperature != 1:
        log_probs = torch.log_softmax(fill_masked(student_logits / temperature, mask, MASKED_LOGIT), -1)
    distilled_count = at_least_one(distill.sum() if counts is None else counts[0])
    apart = decision_divergence(target, log_probs, divergence, beta)
    distillation = apart.masked_fill(~distill, 0).sum() / distilled_count

    loss = alpha * (temperature**2 if scale_by_t2 else 1.0) * distillation
    if alpha < 1:  # not 0 * label, which would send a gradient of 0, or NaN, through the label term
        loss = loss + (1 - alpha) * label
    return DistillationLoss(loss, distillation.detach(), label.detach())


def _label_sum(
    log_probs: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    """Sum over labelled decisions of `(1 - eps) * -log q(y) + eps * mean over allowed classes of -log q`."""
    nll = F.nll_loss(log_probs.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum")
    if epsilon == 0:
        return nll
    if mask is None:
        uniform = -log_probs.mean(-1)
    else:
        uniform = -fill_masked(log_probs, mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    return (1 - epsilon) * nll + epsilon * uniform.masked_fill(labels == NO_LABEL, 0).sum()


def at_least_one(count: Count) -> Count:
    """A count as a divisor. If it is 0, the sum is 0 too, and 0 / 0 would be NaN."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
