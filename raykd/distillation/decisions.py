"""Shared by the modules of this package: H decisions per row over C classes, not all of which are allowed.

A decision whose mask is all False does not exist. It pads a row that has fewer than H decisions, has no label, is never
distilled and adds nothing to any sum.
"""

import torch

# raykd.tasks.common.NO_LABEL, and PyTorch's ignore_index. Not imported: that module needs `datasets`.
NO_LABEL = -100

# The logit of a masked class before a softmax. Not -inf, because its log-probability times a target of 0 would be NaN,
# and so would the softmax of a decision that does not exist. exp() of this value is exactly 0.
MASKED_LOGIT = torch.finfo(torch.float32).min


def fill_masked(logits: torch.Tensor, mask: torch.Tensor | None, value: float) -> torch.Tensor:
    """`logits` (..., C) with `value` in every class that is not allowed. No gradient flows to those classes."""
    if mask is not None and mask.stride(-1) == 0:  # a view over the classes, which `~` would copy for each of them
        mask = mask[..., :1]
    return logits if mask is None else logits.masked_fill(~mask, value)


def existing_decisions(shape: torch.Size, mask: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """(B, H) bool: decisions with at least one allowed class. `shape` is (B, H)."""
    return torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask.any(-1)


def check_labels(labels: torch.Tensor, classes: int, mask: torch.Tensor | None) -> None:
    """Raise ValueError, naming the decision, if a gold label is on a class that is not allowed.

    Call it before the loss, because on CUDA an index outside the classes ends the process. On CUDA tensors it
    synchronizes with the device, so check the labels on the host and pass `labels_checked` to the loss.

    labels: (B, H) int64.
    classes: C.
    mask: (B, H, C) bool, or None.
    """
    gold = labels.clamp(0, classes - 1)
    allowed = gold == labels
    if mask is not None:
        allowed &= mask.gather(-1, gold.unsqueeze(-1)).squeeze(-1)
    forbidden = ~allowed & (labels != NO_LABEL)
    if forbidden.any():
        row, decision = forbidden.nonzero()[0].tolist()
        raise ValueError(
            f"labels[{row}, {decision}] = {labels[row, decision].item()}: "
            f"not a class that this decision allows ({classes} classes), nor {NO_LABEL} for no label"
        )


def check_teacher_logits(logits: torch.Tensor) -> None:
    """Raise ValueError if `logits` is not (M, B, H, C) with at least one teacher."""
    if logits.dim() != 4 or len(logits) == 0:
        shape = tuple(logits.shape)
        raise ValueError(f"logits has shape {shape}: (teachers, rows, decisions, classes) expected")


def check_shape(name: str, tensor: torch.Tensor | None, shape: torch.Size) -> None:
    """Raise ValueError if `tensor` has another shape, because broadcasting would hide the mistake."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: {tuple(shape)} expected")


def check_bool(name: str, tensor: torch.Tensor | None) -> None:
    """Raise ValueError if `tensor` is not bool, because `~` of an integer mask is not its complement."""
    if tensor is not None and tensor.dtype != torch.bool:
        raise ValueError(f"{name} has dtype {tensor.dtype}: torch.bool expected")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r}: one of {', '.join(choices)} expected")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError if `value` is outside [0, 1] or NaN."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} = {value}: a number from 0 to 1 expected")


def check_temperature(temperature: float) -> None:
    """Raise ValueError if `temperature` is not a finite number above 0."""
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: a finite number above 0 expected")
