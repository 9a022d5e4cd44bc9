"""The arithmetic of regression, where a decision is a value instead of a class.

A value v has the form of two logits, (0, v), so C = 2. Logits are known up to a constant per decision, so the value is
the difference of the two. The weighted mean of the teachers' logits is then that of their values, and everything
that stores, averages or sends logits also works for values.

Labels are floats, NaN for no label.
"""

import torch

from raykd.distillation.decisions import NO_LABEL, check_choice, check_fraction, check_shape, check_teacher_logits
from raykd.distillation.loss import Count, DistillationLoss, at_least_one
from raykd.distillation.weighting import AllWrong, CorrectBy, TeacherWeights, weights_of


def values_of(logits: torch.Tensor) -> torch.Tensor:
    """(..., H) fp32 values from (..., H, 2) logits."""
    return logits[..., 1].float() - logits[..., 0].float()


def has_value(labels: torch.Tensor) -> torch.Tensor:
    """Whether there is a label. In the shape of `labels`."""
    return ~labels.isnan()


@torch.no_grad()
def wrong_values(logits: torch.Tensor, labels: torch.Tensor, tolerance: float) -> torch.Tensor:
    """(M, B, H) bool: a teacher's value is farther from the label than `tolerance`; False where there is no label.

    logits: (M, B, H, 2).
    labels: (B, H) float.
    """
    return (values_of(logits) - labels).abs() > tolerance  # False for NaN


@torch.no_grad()
def value_weights(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    weighting: str = "mean",
    W: float = 0.75,
    all_wrong: AllWrong = "mean",
    correct_by: CorrectBy = "decision",
    tolerance: float | None = None,
) -> TeacherWeights:
    """The teachers' weights on every value, and which values are distilled. As `teacher_weights`, for values.

    logits: (M, B, H, 2).
    labels: (B, H) float, NaN for no label.
    weighting: "mean" or "correctness".
    W: weight of a wrong teacher, from 0 to 1.
    all_wrong: "skip": do not distil a labelled value that every teacher gets wrong.
    correct_by: "example": a teacher is right on a row's values only if it is right on all of them.
    tolerance: the largest error of a teacher that is right. Needed for "correctness" and "skip".

    Raises ValueError for an invalid setting or a shape that does not match.
    """
    check_choice("weighting", weighting, ("mean", "correctness"))
    check_choice("all_wrong", all_wrong, ("mean", "skip"))
    check_fraction("W", W)
    check_teacher_logits(logits)
    check_shape("labels", labels, logits.shape[1:3])
    wrong = None
    if weighting == "correctness" or all_wrong == "skip":
        if tolerance is None:
            raise ValueError("tolerance = None: needed to know when a teacher is wrong")
        wrong = wrong_values(logits, labels, tolerance)
    marks = torch.where(has_value(labels), 0, NO_LABEL)  # only where there is a label matters
    every = torch.ones_like(labels, dtype=torch.bool)
    return weights_of(
        len(logits), every, marks, wrong=wrong, weighting=weighting, W=W, all_wrong=all_wrong, correct_by=correct_by
    )


@torch.no_grad()
def value_target(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, H) fp32: the weighted mean of the teachers' values, `sum_m w_m v_m / M`.

    logits: (M, B, H, 2).
    weights: (M, B, H), summing to M over the teachers.
    """
    return (values_of(logits) * weights.float()).sum(0) / len(logits)


def value_loss(
    student_logits: torch.Tensor,
    target: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    alpha: float,
    distill: torch.Tensor | None = None,
    counts: tuple[Count, Count] | None = None,
) -> DistillationLoss:
    """`alpha (s - target)^2 + (1 - alpha) (s - label)^2`, each term an average.

    student_logits: (B, H, 2) float.
    target: (B, H), the teachers' value; None if alpha is 0.
    labels: (B, H) float, NaN for no label.
    alpha: weight of the teachers' term, from 0 to 1.
    distill: (B, H) bool, the values to distil; None for all.
    counts: number of (distilled, labelled) values, as in `distillation_loss`.

    The squared error to a label and to a teacher's value are the negative log-likelihood and the KL divergence of
    normal distributions with one variance, up to the same factor, so alpha weights them as it does for classes.

    Raises ValueError for an invalid setting or a shape that does not match.
    """
    check_fraction("alpha", alpha)
    check_shape("labels", labels, student_logits.shape[:2])
    check_shape("distill", distill, labels.shape)
    values, labelled = values_of(student_logits), has_value(labels)
    label = _squared_error(values, labels, labelled) / at_least_one(labelled.sum() if counts is None else counts[1])
    if alpha == 0:
        return DistillationLoss(label, torch.zeros_like(label), label.detach())
    if target is None:
        raise ValueError(f"target = None: needed with alpha = {alpha}")
    check_shape("target", target, labels.shape)
    distill = torch.ones_like(labelled) if distill is None else distill
    count = at_least_one(distill.sum() if counts is None else counts[0])
    distillation = _squared_error(values, target, distill) / count
    loss = alpha * distillation
    if alpha < 1:
        loss = loss + (1 - alpha) * label
    return DistillationLoss(loss, distillation.detach(), label.detach())


def _squared_error(values: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The sum over the values that are counted. `wanted` may be NaN elsewhere, which must not reach the gradient."""
    return (values - torch.where(counted, wanted.float(), values.detach())).square().sum()
