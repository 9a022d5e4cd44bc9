"""Each term of the loss and its gradient with respect to the student's logits z, in closed form and in place.

With q = softmax(z / T), the gradient of any D(q) is dD/dz_j = q_j (dD/dq_j - sum_i q_i dD/dq_i) / T. So:

    label        -log q_y              q - y; smoothed by eps: q - (1 - eps) y - eps / C
    forward_kl   KL(p || q)            (q - p) / T
    reverse_kl   KL(q || p)            q (log q - log p - KL(q || p)) / T
    jsd          as in `divergences`   (1 - beta) q (log q - log m - KL(q || m)) / T
    top_k        KL on K + 1 classes   (q - p') / T; p' is p on the K classes, and elsewhere q p_tail / q_tail

For jsd, dD/dq_j = (1 - beta) (log(q_j / m_j) + 1 - (beta p_j + (1 - beta) q_j) / m_j), whose fraction is 1.

Each divergence below turns log q into `a` times its gradient plus `b` times q, which is the label term's part of the
gradient at T = 1. a, b: (c, 1). It returns the values, (c,).
"""

import math
from collections.abc import Sequence

import torch

from raykd.distillation.decisions import NO_LABEL
from raykd.distillation.packed import TopK
from raykd.distillation.taught import ChunkTarget

_SMALLEST = torch.finfo(torch.float32).tiny
_MOST_NAMED = 1 - 1e-7  # in fp32 a smaller difference from 1 means nothing


def label_term(log_q: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(c,), 0 where there is no label."""
    values = -log_q.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if epsilon:
        values = (1 - epsilon) * values - epsilon * log_q.mean(-1)
    return values.masked_fill(labels == NO_LABEL, 0)


def subtract_labels(gradient: torch.Tensor, labels: torch.Tensor, b: torch.Tensor, epsilon: float) -> None:
    """From b q to b times the label term's gradient. b: (c, 1), 0 where there is no label."""
    if epsilon:
        gradient.sub_(b * (epsilon / gradient.shape[-1]))
    gradient.scatter_add_(-1, labels.clamp(min=0).unsqueeze(-1), (epsilon - 1) * b)


def forward_kl(
    target: ChunkTarget, log_q: torch.Tensor, work: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    p = target.values
    if target.is_log:
        torch.sub(p, log_q, out=work)
        p.exp_()
    else:
        torch.clamp(p, min=_SMALLEST, out=work).log_().sub_(log_q)  # 0 log 0 is 0
    values = work.mul_(p).sum(-1)
    log_q.exp_().mul_(a + b).addcmul_(p, -a)
    return values


def reverse_kl(
    log_p: torch.Tensor, log_q: torch.Tensor, work: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    log_ratio = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    values = torch.mul(q, log_ratio, out=work).sum(-1)
    q.mul_(log_ratio.sub_(values.unsqueeze(-1)).mul_(a).add_(b))
    return values


def jsd(
    log_p: torch.Tensor, log_q: torch.Tensor, work: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float
) -> torch.Tensor:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta), out=work)
    of_target = (log_p - log_m).mul_(log_p.exp_()).sum(-1)
    log_ratio = torch.sub(log_q, log_m, out=work)
    q = log_q.exp_()
    own = torch.mul(q, log_ratio, out=log_p).sum(-1)
    q.mul_(log_ratio.sub_(own.unsqueeze(-1)).mul_(a * (1 - beta)).add_(b))
    return beta * of_target + (1 - beta) * own


def top_k(
    known: Sequence[TopK], weights: torch.Tensor, log_q: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """The sum over teachers of w_m / M times the divergence from m.

    With r = p_tail / q_tail, q - p' is (1 - r) q, and r q - p more on the K classes.

    weights: (M, c), which sum to 1.
    """
    values, factor = torch.zeros_like(weights[0]), torch.zeros_like(a)
    changes = []
    for each, weight in zip(known, weights.unsqueeze(-1), strict=True):
        values += weight.squeeze(-1) * bucket_divergence(each, log_q)
        p, q_known = each.log_p.exp(), log_q.gather(-1, each.classes).exp()
        named = q_known.sum(-1, keepdim=True)
        tail = each.log_tail.exp().unsqueeze(-1) / (1 - named).clamp(min=1 - _MOST_NAMED)
        tail = tail.masked_fill(named > _MOST_NAMED, 0)  # there the divergence does not depend on q_tail
        factor += weight * (p.sum(-1, keepdim=True) - tail * named)
        changes.append(weight * (tail * q_known - p))
    gradient = log_q.exp_().mul_(a * factor + b)
    for each, change in zip(known, changes, strict=True):
        gradient.scatter_add_(-1, each.classes, a * change)
    return values


def bucket_divergence(known: TopK, log_q: torch.Tensor) -> torch.Tensor:
    """(...,) KL divergence of the student from a teacher on K + 1 classes, the last of which is all the others.

    log_q: (..., C) log-probabilities of the student, at T = 1.
    """
    log_q_known = log_q.gather(-1, known.classes)
    share = log_q_known.exp().sum(-1).clamp(max=_MOST_NAMED)
    log_q_tail, log_tail = torch.log1p(-share), known.log_tail
    named = (known.log_p.exp() * (known.log_p - log_q_known)).sum(-1)
    return named + log_tail.exp() * (log_tail - log_q_tail)
