"""The student's loss over a large vocabulary: chunk by chunk, never (decisions, classes) of the whole batch.

The head's matmul is inside the loss. Each chunk's gradients are computed at once, in the forward pass, and its logits
are dropped. So memory does not grow with the number of decisions, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from raykd.distillation.decisions import NO_LABEL
from raykd.distillation.divergences import Divergence, decision_divergence
from raykd.distillation.loss import Count, DistillationLoss, at_least_one
from raykd.distillation.packed import TopK
from raykd.distillation.target import Pool, pooled

CHUNK_LOGITS = 2**24  # of the student's in a chunk: 64 MB in fp32, about five of which are alive at once

Head = Callable[[torch.Tensor], torch.Tensor]
Slice = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class Taught:
    """What the teachers teach, over D decisions.

    weights: (M, D) fp32.
    distill: (D,) bool, the decisions that are distilled.
    logits: per teacher, from a slice of the decisions to its logits (c, C). Empty if `top_k` is given.
    top_k: per teacher, from a slice to the classes that are known.
    """

    weights: torch.Tensor
    distill: torch.Tensor
    logits: Sequence[Slice] = ()
    top_k: Sequence[Callable[[slice], TopK]] = ()


@dataclass(frozen=True)
class Settings:
    """As in `distillation_loss`, with the pool of `ensemble_target`."""

    alpha: float
    temperature: float = 1.0
    scale_by_t2: bool = True
    epsilon: float = 0.0
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    pool: Pool = "logits"


def chunked_loss(
    states: torch.Tensor,
    head: Head,
    parameters: Sequence[torch.Tensor],
    labels: torch.Tensor,
    taught: Taught | None,
    settings: Settings,
    counts: tuple[Count, Count] | None = None,
    classes: int | None = None,
    chunk: int | None = None,
) -> DistillationLoss:
    """`distillation_loss` of D decisions, from what enters the student's head.

    states: (D, d), the student's last hidden states.
    head: from states (c, d) to logits (c, V).
    parameters: the head's, all of them; only those that require a gradient get one.
    labels: (D,) int64, -100 for no label.
    taught: None if alpha is 0.
    counts: number of (distilled, labelled) decisions of the whole optimizer step; None: those of these decisions.
    classes: C, of which the head may give more; None: all that it gives.
    chunk: decisions at once; None: as many as keep a chunk's logits near 64 MB.

    Over `top_k`, the divergence is the sum over teachers of w_m / M times the KL divergence of the student from teacher
    m on K + 1 classes, of which the last one is all that m does not name. Its gradient is that from their mixture (the
    `pool` "probabilities"), since the forward KL divergence is linear in the target but for a constant.
    """
    trained = [p for p in parameters if p.requires_grad]
    if counts is None:
        distilled = 0 if taught is None else taught.distill.sum()
        counts = (distilled, (labels != NO_LABEL).sum())
    problem = _Problem(head, trained, labels, taught, settings, (counts[0], counts[1]), classes, chunk)
    loss, distillation, label = _ChunkedLoss.apply(problem, states, *trained)
    return DistillationLoss(loss, distillation, label)


@dataclass(frozen=True)
class _Problem:
    head: Head
    trained: list[torch.Tensor]
    labels: torch.Tensor
    taught: Taught | None
    settings: Settings
    counts: tuple[Count, Count]
    classes: int | None
    chunk: int | None


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, problem: _Problem, states: torch.Tensor, *trained: torch.Tensor):  # type: ignore[no-untyped-def]
        decisions, device = len(states), states.device
        wanted = ctx.needs_input_grad[1] or any(ctx.needs_input_grad[2:])
        of_states = torch.zeros_like(states)
        of_trained = [torch.zeros_like(p) for p in problem.trained] if wanted else []
        sums = torch.zeros(3, dtype=torch.float32, device=device)
        size = problem.chunk or _chunk_size(problem, states)
        for start in range(0, decisions, size):
            part = slice(start, min(start + size, decisions))
            with torch.enable_grad():
                mine = states[part].detach().requires_grad_()
                loss, distillation, label = _chunk_loss(problem, mine, part)
                if wanted:
                    found = torch.autograd.grad(loss, [mine, *problem.trained], allow_unused=True)
            sums += torch.stack([loss.detach(), distillation, label])
            if wanted:
                of_states[part] = found[0]
                for total, gradient in zip(of_trained, found[1:], strict=True):
                    if gradient is not None:
                        total += gradient
        ctx.save_for_backward(of_states, *of_trained)
        total_loss, distillation, label = sums.unbind()
        ctx.mark_non_differentiable(distillation, label)
        return total_loss, distillation, label

    @staticmethod
    def backward(ctx, of_loss: torch.Tensor, *_: torch.Tensor):  # type: ignore[no-untyped-def]
        return None, *(gradient * of_loss for gradient in ctx.saved_tensors)


def _chunk_size(problem: _Problem, states: torch.Tensor) -> int:
    with torch.no_grad():
        classes = problem.head(states[:1]).shape[-1] if len(states) else 1
    return max(16, CHUNK_LOGITS // classes)


def _chunk_loss(
    problem: _Problem, states: torch.Tensor, part: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This chunk's share of the loss, of the average divergence and of the average label term."""
    settings, taught, labels = problem.settings, problem.taught, problem.labels[part]
    logits = problem.head(states)[:, : problem.classes].float()
    log_q = torch.log_softmax(logits, -1)
    label = F.nll_loss(log_q, labels, ignore_index=NO_LABEL, reduction="sum")
    if settings.epsilon:
        uniform = -log_q.mean(-1).masked_fill(labels == NO_LABEL, 0).sum()
        label = (1 - settings.epsilon) * label + settings.epsilon * uniform
    label = label / at_least_one(problem.counts[1])
    if settings.alpha == 0:
        return label, torch.zeros_like(label), label.detach()
    if taught is None:
        raise ValueError(f"taught = None: needed with alpha = {settings.alpha}")
    if settings.temperature != 1:
        log_q = torch.log_softmax(logits / settings.temperature, -1)
    apart = _divergence(taught, settings, log_q, part).masked_fill(~taught.distill[part], 0)
    distillation = apart.sum() / at_least_one(problem.counts[0])
    loss = settings.alpha * (settings.temperature**2 if settings.scale_by_t2 else 1.0) * distillation
    if settings.alpha < 1:
        loss = loss + (1 - settings.alpha) * label
    return loss, distillation.detach(), label.detach()


def _divergence(taught: Taught, settings: Settings, log_q: torch.Tensor, part: slice) -> torch.Tensor:
    """(c,) of a chunk."""
    weights = taught.weights[:, part]
    if taught.top_k:
        total = torch.zeros(len(log_q), device=log_q.device)
        for known, weight in zip((of_slice(part) for of_slice in taught.top_k), weights, strict=True):
            total = total + weight / len(weights) * bucket_divergence(known, log_q)
        return total
    logits = (of_slice(part) for of_slice in taught.logits)
    log = settings.divergence != "forward_kl"
    target = pooled(logits, weights, settings.temperature, pool=settings.pool, log=log)
    return decision_divergence(target, log_q, settings.divergence, settings.beta)


def bucket_divergence(known: TopK, log_q: torch.Tensor) -> torch.Tensor:
    """(...,) KL divergence of the student from a teacher on K + 1 classes, the last of which is all the others.

    log_q: (..., C) log-probabilities of the student, at T = 1.
    """
    log_q_known = log_q.gather(-1, known.classes)
    share = log_q_known.exp().sum(-1).clamp(max=1 - 1e-7)
    log_q_tail, log_tail = torch.log1p(-share), known.log_tail
    named = (known.log_p.exp() * (known.log_p - log_q_known)).sum(-1)
    return named + log_tail.exp() * (log_tail - log_q_tail)
