"""Logits in the fp16 form in which they are sent and stored."""

import torch

from raykd.distillation.decisions import check_bool, check_shape, fill_masked
from raykd.distillation.errors import NotFiniteError

FP16_MAX = torch.finfo(torch.float16).max


@torch.no_grad()
def compact_logits(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Convert logits to fp16 with the same softmax.

    The decision's largest allowed logit is subtracted, in fp32. The largest is then 0, so nothing overflows upwards,
    and the leading classes are in the range where fp16 is finest, so that they do not tie. The rest is clamped to
    fp16's finite range. Classes that are not allowed are set to 0.

    logits: (..., C), any float dtype.
    mask: bool, the allowed classes, in the shape of logits or of its last dimensions; None allows all.

    Returns (..., C) fp16. Raises NotFiniteError, naming the index, if an allowed logit is NaN or infinite.
    """
    compact, finite = compact_unchecked(logits, mask)
    if not finite:
        allowed = fill_masked(logits.float(), mask, 0.0)
        place = (~allowed.isfinite()).nonzero()[0].tolist()
        raise NotFiniteError(f"logits{place} = {logits[tuple(place)].item()}: not a finite fp32 number")
    return compact


@torch.no_grad()
def compact_unchecked(logits: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without the error: also returns whether all allowed logits are finite, as a bool scalar.

    Does not synchronize with the device.
    """
    if mask is not None:
        check_shape("mask", mask, logits.shape[-mask.dim() :])
        check_bool("mask", mask)
    allowed = fill_masked(logits.float(), mask, 0.0)
    largest = fill_masked(allowed, mask, float("-inf")).amax(-1, keepdim=True)
    shifted = (allowed - largest).clamp(min=-FP16_MAX)
    return fill_masked(shifted, mask, 0.0).half(), allowed.isfinite().all()
