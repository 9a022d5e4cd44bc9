"""Weights and divergences that are functions of the user's own code, and the checks of what they return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from raykd.common.dotted import is_dotted
from raykd.common.errors import ConfigError, OwnCodeError
from raykd.common.own_objects import failure, handled_elsewhere, imported
from raykd.distillation.decisions import MASKED_LOGIT, existing_decisions, fill_masked

_TOLERANCE = 1e-3  # of the weights' sum, for each teacher; fp16 would keep it


@dataclass(frozen=True)
class OwnFunction:
    """A function of the user's own. What goes wrong in it is an OwnCodeError that names it.

    key: of the config, such as "method.weighting".
    path: `module:name`.
    call: from tensors to a tensor.
    """

    key: str
    path: str
    call: Callable[..., torch.Tensor]

    @classmethod
    def named(cls, path: str, key: str) -> "OwnFunction":
        """Import it. Raises ConfigError."""
        found = imported(path, key)
        if not callable(found):
            raise ConfigError(key, path, f"it is a {type(found).__name__}, not a function", "Name a function")
        return cls(key, path, found)

    def __call__(self, shape: torch.Size, *tensors: torch.Tensor) -> torch.Tensor:
        """Its result in fp32. shape: that it must have. Raises OwnCodeError."""
        try:
            found = self.call(*tensors)
        except Exception as error:  # it is the user's code
            if handled_elsewhere(error):
                raise
            given = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            reason = f"it failed on tensors of the shapes {given} ({failure(error, self.path)})"
            raise self.error(reason, "Call it in Python with tensors of these shapes to see where") from error
        if not isinstance(found, torch.Tensor):
            raise self.error(f"it returned a {type(found).__name__}", f"Return a tensor of shape {tuple(shape)}")
        if found.shape != shape:
            reason = f"it returned the shape {tuple(found.shape)}, not {tuple(shape)}"
            raise self.error(reason, f"Return {_MEANING[self.key]}")
        return found.float()

    def error(self, reason: str, hint: str) -> OwnCodeError:
        return OwnCodeError(self.key, self.path, reason, hint)


_MEANING = {
    "method.weighting": "one weight for each teacher and decision: (teachers, rows, decisions)",
    "method.divergence": "one number for each decision: sum over the classes, which are the last dimension",
}


def function_or_name(value: str, key: str) -> Any:
    """The OwnFunction that a setting names, if it is one of the user's own; otherwise the setting itself."""
    return OwnFunction.named(value, key) if is_dotted(value) else value


@torch.no_grad()
def own_weights(
    function: OwnFunction, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """(M, B, H) fp32, at least 0, summing to M over the teachers; 1 on decisions that do not exist.

    logits: (M, B, H, C) float. The function gets them in fp32, and so low on classes that are not allowed that their
        exponential is 0.
    labels: (B, H) int64, -100 for no label.
    mask: (B, H, C) bool, the allowed classes; None: all. The function gets a mask in both cases.

    Raises OwnCodeError if the weights are invalid on a decision that exists.
    """
    allowed = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device) if mask is None else mask
    weights = function(logits.shape[:3], fill_masked(logits.float(), mask, MASKED_LOGIT), labels, allowed)
    weights = weights.masked_fill(~existing_decisions(labels.shape, mask, logits.device), 1)
    if not weights.isfinite().all():
        raise function.error("it returned a weight that is not finite", "Return finite weights of at least 0")
    if (weights < 0).any():
        raise function.error(f"it returned the weight {weights.min():.4g}", "Return weights of at least 0")
    teachers = len(logits)
    off = (weights.sum(0) - teachers).abs()
    if (off > _TOLERANCE * teachers).any():
        wrong = weights.sum(0).flatten()[off.argmax()].item()
        hint = f"Divide them by their sum over the teachers, and multiply by {teachers}"
        raise function.error(f"its weights sum to {wrong:.4g} on a decision, not to {teachers}, the teachers", hint)
    return weights


def own_divergence(function: OwnFunction, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """(...,) fp32, one number for each decision.

    log_p: (..., C) log-probabilities of the ensemble.
    log_q: (..., C) those of the student, with a gradient.

    Raises OwnCodeError if the shape is wrong, or a number is not finite. On a GPU the latter is left to the training's
    own check of its loss, because reading a number would wait for the device.
    """
    found = function(log_q.shape[:-1], log_p, log_q)
    if found.device.type == "cpu":
        exists = log_p.exp().sum(-1) > 0.5
        if not (found.isfinite() | ~exists).all():
            hint = "On classes that are not allowed, both log-probabilities are very low; avoid infinities there"
            raise function.error("it returned a number that is not finite", hint)
    return found


def own_gradient(
    function: OwnFunction, log_p: torch.Tensor, log_q: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """`own_divergence` as the closed forms of `gradients`: turns log q into `a` times its gradient plus `b` times q.

    With g = dD / dlog q, from autograd, the gradient with respect to the logits is g - q sum(g).

    a, b: (c, 1).

    Returns the values, (c,).
    """
    with torch.enable_grad():
        variable = log_q.detach().requires_grad_()
        values = own_divergence(function, log_p, variable)
        [gradient] = torch.autograd.grad(values.sum(), variable)
    values = values.detach().clone()  # it can be a view of log q
    log_q.exp_().mul_(b - a * gradient.sum(-1, keepdim=True)).addcmul_(gradient, a)
    return values
