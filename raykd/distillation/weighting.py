"""The teachers' weights, on each decision of each row."""

from typing import Literal, NamedTuple

import torch

from raykd.distillation.decisions import (
    MASKED_LOGIT,
    NO_LABEL,
    check_bool,
    check_choice,
    check_fraction,
    check_labels,
    check_shape,
    check_teacher_logits,
    check_temperature,
    existing_decisions,
    fill_masked,
)
from raykd.distillation.own import OwnFunction, own_weights

Weighting = Literal["mean", "correctness", "likelihood", "entropy"] | OwnFunction
AllWrong = Literal["mean", "skip"]
CorrectBy = Literal["decision", "example"]


class TeacherWeights(NamedTuple):
    """The result of `teacher_weights`.

    weights: (M, B, H) fp32, summing to M over the teachers.
    distill: (B, H) bool, the decisions that are distilled.
    """

    weights: torch.Tensor
    distill: torch.Tensor


@torch.no_grad()
def teacher_weights(
    logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    weighting: Weighting = "mean",
    W: float = 0.75,
    all_wrong: AllWrong = "mean",
    correct_by: CorrectBy = "decision",
    weight_temperature: float = 1.0,
) -> TeacherWeights:
    """The teachers' weights on every decision, and which decisions are distilled.

    A teacher is wrong on a decision if its argmax over allowed classes is not the label. Decisions without a label keep
    weight 1 and are distilled.

    logits: (M, B, H, C) float.
    labels: (B, H) int64, -100 for no label.
    mask: (B, H, C) bool, the allowed classes; None allows all.
    weighting: "mean": all weights are 1.
        "correctness" (weighted distillation, raykd's own): if k of M teachers are wrong and 0 < k < M, the wrong ones
        get W and the right ones share the rest, `1 + k (1 - W) / (M - k)`. If none or all are wrong, all weights are 1.
        "likelihood": M times the softmax over the teachers of their log-probability of the label.
        "entropy": M times the softmax over the teachers of minus their distribution's entropy; needs no label.
        A function of the user's own: its weights, on every decision that exists. The other settings have no effect.
    W: weight of a wrong teacher, from 0 to 1.
    all_wrong: "skip": in either weighting, do not distil a labelled decision that every teacher gets wrong.
    correct_by: "example": a teacher is right on a row's labelled decisions only if it is right on all of them; its
        log-probability or entropy is the mean of the row's.
    weight_temperature: of the softmax over the teachers, above 0; near 0 the best teacher has all the weight, and far
        above 1 all weights are 1.

    Raises ValueError for an invalid setting, a shape that does not match and, if labels are read (always, except in
    "mean" without "skip"), a label on a class that is not allowed.
    """
    if not isinstance(weighting, OwnFunction):
        check_choice("weighting", weighting, ("mean", "correctness", "likelihood", "entropy"))
    check_choice("all_wrong", all_wrong, ("mean", "skip"))
    check_choice("correct_by", correct_by, ("decision", "example"))
    check_fraction("W", W)
    check_temperature(weight_temperature)
    check_teacher_logits(logits)
    check_shape("labels", labels, logits.shape[1:3])
    check_shape("mask", mask, logits.shape[1:])
    check_bool("mask", mask)

    exists = existing_decisions(labels.shape, mask, logits.device)
    if isinstance(weighting, OwnFunction):
        return TeacherWeights(own_weights(weighting, logits, labels, mask), exists)
    wrong = evidence = None
    if weighting in ("likelihood", "entropy"):
        gold = None
        if weighting == "likelihood":
            check_labels(labels, logits.shape[-1], mask)
            gold = labels.clamp(min=0).unsqueeze(-1)
        evidence = torch.stack([_evidence(of_teacher, mask, gold) for of_teacher in logits])
    if weighting == "correctness" or all_wrong == "skip":
        wrong = _wrong_teachers(logits, labels, mask)
    return weights_of(
        len(logits),
        exists,
        labels,
        wrong=wrong,
        evidence=evidence,
        weighting=weighting,
        W=W,
        all_wrong=all_wrong,
        correct_by=correct_by,
        weight_temperature=weight_temperature,
    )


@torch.no_grad()
def weights_of(
    teachers: int,
    exists: torch.Tensor,
    labels: torch.Tensor,
    *,
    wrong: torch.Tensor | None,
    evidence: torch.Tensor | None = None,
    weighting: str,
    W: float,
    all_wrong: AllWrong,
    correct_by: CorrectBy,
    weight_temperature: float = 1.0,
) -> TeacherWeights:
    """`teacher_weights` where it is known already what each teacher says.

    teachers: M.
    exists: (B, H) bool, the decisions that exist.
    labels: (B, H) int64, -100 for no label.
    wrong: (M, B, H) bool, whether a labelled decision is wrong; needed for "correctness" and "skip".
    evidence: (M, B, H) fp32, the log-probability of the label, or minus the entropy, as the weighting needs it.
    """
    labelled = labels != NO_LABEL
    weights = torch.ones((teachers, *labels.shape), dtype=torch.float32, device=labels.device)
    distill = exists
    if weighting == "mean" and all_wrong == "mean":
        return TeacherWeights(weights, distill)

    if weighting in ("likelihood", "entropy"):
        assert evidence is not None
        used = labelled if weighting == "likelihood" else exists
        if correct_by == "example":
            total, count = evidence.masked_fill(~used, 0).sum(-1, keepdim=True), used.sum(-1, keepdim=True)
            evidence = (total / count.clamp(min=1)).expand_as(evidence)
        weights = (teachers * torch.softmax(evidence / weight_temperature, 0)).masked_fill(~used, 1)
    if weighting != "correctness" and all_wrong == "mean":
        return TeacherWeights(weights, distill)
    assert wrong is not None
    if correct_by == "example":
        wrong = wrong.any(-1, keepdim=True) & labelled
    wrong_count = wrong.sum(0)  # k, (B, H)
    every_teacher_wrong = wrong_count == teachers
    if all_wrong == "skip":
        distill = distill & ~every_teacher_wrong
    if weighting == "correctness":
        right_count = (teachers - wrong_count).clamp(min=1)
        right_weight = 1 + wrong_count.float() * (1 - W) / right_count  # exactly 1 if none is wrong
        weights = torch.where(wrong, W, right_weight).masked_fill(every_teacher_wrong, 1)
    return TeacherWeights(weights, distill)


def _evidence(logits: torch.Tensor, mask: torch.Tensor | None, gold: torch.Tensor | None) -> torch.Tensor:
    """(B, H) fp32: one teacher's log-probability of `gold` (B, H, 1), or minus its entropy if that is None."""
    log_p = torch.log_softmax(fill_masked(logits.float(), mask, MASKED_LOGIT), -1)
    if gold is not None:
        return log_p.gather(-1, gold).squeeze(-1)
    return (log_p.exp() * log_p).sum(-1)


def weights_changed(weights: torch.Tensor) -> torch.Tensor:
    """(B, H) bool: the decisions on which any of the weights (M, B, H) differs from 1."""
    return (weights != 1).any(0)


def _wrong_teachers(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(M, B, H) bool: teacher m is wrong on this decision; False where there is no label."""
    check_labels(labels, logits.shape[-1], mask)
    answers = fill_masked(logits, mask, float("-inf")).argmax(-1)
    return (answers != labels) & (labels != NO_LABEL)
