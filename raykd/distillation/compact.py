"""Logits as they go on the wire and into the store."""

import torch

from raykd.distillation.decisions import check_bool, check_shape, fill_masked

FP16_MAX = torch.finfo(torch.float16).max


@torch.no_grad()
def compact_logits(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`logits` (..., C), any float dtype, as fp16 (..., C) that give the same softmax.

    In fp32 the decision's largest allowed logit is subtracted: the largest is then 0, nothing overflows
    upwards, and the leading classes lie where fp16 is finest, so that they do not tie. The rest is clamped to
    fp16's finite range. Classes that `mask` (bool, the shape of logits or of its last
    dimensions) does not allow are set to 0.

    Raises ValueError, naming the place, if an allowed logit is NaN or infinite.
    """
    compact, finite = compact_unchecked(logits, mask)
    if not finite:
        allowed = fill_masked(logits.float(), mask, 0.0)
        place = (~allowed.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"logits{place} = {logits[tuple(place)].item()}: not a finite fp32 number")
    return compact


@torch.no_grad()
def compact_unchecked(logits: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and a bool scalar: whether all allowed logits are finite. Reads nothing back from the device."""
    if mask is not None:
        check_shape("mask", mask, logits.shape[-mask.dim() :])
        check_bool("mask", mask)
    allowed = fill_masked(logits.float(), mask, 0.0)
    largest = fill_masked(allowed, mask, float("-inf")).amax(-1, keepdim=True)
    shifted = (allowed - largest).clamp(min=-FP16_MAX)
    return fill_masked(shifted, mask, 0.0).half(), allowed.isfinite().all()
