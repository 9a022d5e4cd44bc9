"""Divergences of the student from the ensemble, one number for each decision."""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from raykd.distillation.own import OwnFunction, own_divergence

Divergence = Literal["forward_kl", "reverse_kl", "jsd"] | OwnFunction
DIVERGENCES: tuple[str, ...] = ("forward_kl", "reverse_kl", "jsd")


def decision_divergence(target: torch.Tensor, log_q: torch.Tensor, divergence: Divergence, beta: float) -> torch.Tensor:
    """(B, H) fp32: how far the student's distribution q is from the ensemble's p. 0 where they are equal.

    target: (B, H, C): p for "forward_kl", log p for the others, which need it where p is too small for a float.
    log_q: (B, H, C) log-probabilities of the student, at the target's temperature.
    divergence: "forward_kl": `KL(p || q)` (Hinton et al. 2015): q covers all that p holds probable.
        "reverse_kl": `KL(q || p)` (as in MiniLLM, Gu et al. 2024): q may leave out what it cannot express.
        "jsd": `beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q` (Agarwal et al. 2024, GKD,
        equation 1), which is bounded.
        A function of the user's own: called with log p and log q.
    beta: of "jsd", between 0 and 1.

    Where classes are not allowed, p and q are 0, or their logarithms so low that their exponential is; they add 0.
    """
    if isinstance(divergence, OwnFunction):
        return own_divergence(divergence, target, log_q)
    if divergence == "forward_kl":
        return F.kl_div(log_q, target, reduction="none").sum(-1)
    if divergence == "reverse_kl":
        return (log_q.exp() * (log_q - target)).sum(-1)
    log_m = torch.logaddexp(target + math.log(beta), log_q + math.log1p(-beta))
    of_target = (target.exp() * (target - log_m)).sum(-1)
    return beta * of_target + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(-1)
