"""The distillation target: the teachers' logits, pooled into one distribution."""

from collections.abc import Iterable
from typing import Literal

import torch

from raykd.distillation.decisions import (
    MASKED_LOGIT,
    check_bool,
    check_choice,
    check_shape,
    check_teacher_logits,
    check_temperature,
    fill_masked,
)

Pool = Literal["logits", "probabilities"]


@torch.no_grad()
def ensemble_target(
    logits: torch.Tensor,
    weights: torch.Tensor,
    temperature: float,
    mask: torch.Tensor | None = None,
    pool: Pool = "logits",
    log: bool = False,
) -> torch.Tensor:
    """The ensemble's distribution over classes, (B, H, C) fp32, at temperature T.

    logits: (M, B, H, C) float.
    weights: (M, B, H), summing to M over the teachers.
    temperature: T, above 0.
    mask: (B, H, C) bool, the allowed classes; None allows all.
    pool: "logits": `softmax(sum_m(w_m z_m) / (M T))`, the geometric mean of the teachers.
        "probabilities": `sum_m (w_m / M) softmax(z_m / T)`, the arithmetic mean.
    log: return its logarithm, which is exact where a probability is too small for a float.

    Hinton et al. 2015, section 3, name both; the weights are raykd's own. With M = 1 both are the softened softmax of
    KD, and of a born-again student's teacher (Furlanello et al. 2018).

    A class that is not allowed gets exactly 0; a decision that does not exist is all 0. (With `log`: a number so low
    that its exponential is 0; a decision that does not exist must be left out.)
    Raises ValueError for T <= 0, an unknown pool or a shape that does not match.
    """
    check_temperature(temperature)
    check_choice("pool", pool, ("logits", "probabilities"))
    check_teacher_logits(logits)
    check_shape("weights", weights, logits.shape[:-1])
    check_shape("mask", mask, logits.shape[1:])
    check_bool("mask", mask)

    return pooled(logits, weights.float(), temperature, mask, pool, log)


@torch.no_grad()
def pooled(
    logits: Iterable[torch.Tensor],
    weights: torch.Tensor,
    temperature: float,
    mask: torch.Tensor | None = None,
    pool: Pool = "logits",
    log: bool = False,
) -> torch.Tensor:
    """`ensemble_target` without its checks, one teacher at a time: they can be computed as they are needed.

    logits: M tensors (..., C) float.
    weights: (M, ...) fp32.
    mask: (..., C) bool, or None.
    """
    teachers = len(weights)
    total: torch.Tensor | None = None
    # One teacher at a time, because an fp32 copy of all of them takes M times the memory and, over a large vocabulary,
    # more than twice the time. Not einsum, because autocast and TF32 would take its matmul out of fp32.
    for teacher_logits, weight in zip(logits, weights.unsqueeze(-1), strict=True):
        if log and pool == "probabilities":
            softened = fill_masked(teacher_logits.float() / temperature, mask, MASKED_LOGIT)
            part = torch.log_softmax(softened, -1) + (weight / teachers).log()
            total = part if total is None else torch.logaddexp(total, part)
            continue
        if total is None:
            total = torch.zeros(teacher_logits.shape, dtype=torch.float32, device=teacher_logits.device)
        if pool == "logits":
            total += teacher_logits * weight  # fp16 times fp32 is fp32
        else:
            softened = fill_masked(teacher_logits.float() / temperature, mask, MASKED_LOGIT)
            total += torch.softmax(softened, -1) * weight
    assert total is not None
    if log and pool == "probabilities":
        return fill_masked(total, mask, MASKED_LOGIT)
    if log:
        return torch.log_softmax(fill_masked(total / (teachers * temperature), mask, MASKED_LOGIT), -1)
    if pool == "logits":
        target = torch.softmax(fill_masked(total / (teachers * temperature), mask, MASKED_LOGIT), -1)
    else:
        target = total / teachers
    # Otherwise a decision that does not exist would be uniform over classes that are not allowed.
    return fill_masked(target, mask, 0.0)
