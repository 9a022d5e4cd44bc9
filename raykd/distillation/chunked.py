"""The student's loss over a large vocabulary: chunk by chunk, never (decisions, classes) of the whole batch.

The head's matmul is inside the loss. Each chunk's gradients are computed at once, in the forward pass, and its logits
are dropped. So memory does not grow with the number of decisions, and nothing is computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raykd.distillation import gradients
from raykd.distillation.decisions import NO_LABEL
from raykd.distillation.divergences import Divergence
from raykd.distillation.loss import Count, DistillationLoss, at_least_one
from raykd.distillation.own import OwnFunction, own_gradient
from raykd.distillation.student_head import AnyHead, Head, student_head
from raykd.distillation.target import Pool
from raykd.distillation.taught import ChunkTarget, Scratch, Taught, chunk_target

CHUNK_LOGITS = 2**24  # in a chunk: 64 MB in fp32, of which three or four are alive at once


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

    @property
    def of_temperature(self) -> float:
        """By which the divergence is multiplied."""
        return self.temperature**2 if self.scale_by_t2 else 1.0


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
        wanted = any(ctx.needs_input_grad[1:])
        of_states = torch.zeros_like(states)
        of_trained = [torch.zeros_like(p) for p in problem.trained] if wanted else []
        sums = torch.zeros(2, dtype=torch.float32, device=states.device)  # of the divergence and of the label term
        head = student_head(problem.head, problem.trained, problem.classes, states)
        if decisions := len(states):
            classes = head.width(states)
            size = min(decisions, problem.chunk or max(16, CHUNK_LOGITS // classes))
            scratch = Scratch(size, classes, states.device)
            for start in range(0, decisions, size):
                part = slice(start, min(start + size, decisions))
                gradient, terms = _chunk(problem, head, states[part], part, scratch)
                sums += terms
                if wanted:
                    head.add_gradients(gradient, of_states[part], of_trained)
        ctx.gradients = [of_states, *of_trained]
        distillation, label = (total / at_least_one(n) for total, n in zip(sums, problem.counts, strict=True))
        ctx.mark_non_differentiable(distillation, label)
        alpha, rest = problem.settings.alpha, 1 - problem.settings.alpha
        if not alpha:
            return label.clone(), distillation, label
        loss = alpha * problem.settings.of_temperature * distillation
        return loss + rest * label if rest else loss, distillation, label

    @staticmethod
    def backward(ctx, of_loss: torch.Tensor, *_: torch.Tensor):  # type: ignore[no-untyped-def]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss have been taken, and they are not kept")
        gradients, ctx.gradients = ctx.gradients, None  # so that they become the parameters' own, and are not copied
        if of_loss.device.type != "cpu" or of_loss != 1:  # to ask a GPU would take longer than to multiply
            for gradient in gradients:
                gradient *= of_loss
        return None, *gradients


def _chunk(
    problem: _Problem, head: AnyHead, states: torch.Tensor, part: slice, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the loss with respect to this chunk's logits, and the sums of its divergences and label terms.

    In the buffers: "target" p, then what of it the divergence needs; "a" the logits, then differences of logarithms;
    "b" log q, then the gradient; "c" log q at T, if both q and q at T have a gradient.
    """
    settings, labels, counts = problem.settings, problem.labels[part], problem.counts
    alpha, temperature, epsilon = settings.alpha, settings.temperature, settings.epsilon
    target = _target(problem, part, scratch)
    logits, gradient = head.logits(states, scratch), scratch.take("b", len(states))
    torch.log_softmax(logits, -1, out=gradient)
    label = gradients.label_term(gradient, labels, epsilon)
    b = ((labels != NO_LABEL) * ((1 - alpha) / at_least_one(counts[1]))).float().unsqueeze(-1)
    divergence = torch.zeros_like(label)
    if not alpha:
        gradient.exp_().mul_(b)
    elif temperature == 1:  # both terms have one q
        divergence = _divergence(problem, part, target, gradient, scratch, b)
    else:
        log_q = gradient
        if alpha < 1:
            gradient.exp_().mul_(b)
            log_q = scratch.take("c", len(states))
        torch.log_softmax(torch.div(logits, temperature, out=scratch.take("a", len(states))), -1, out=log_q)
        divergence = _divergence(problem, part, target, log_q, scratch, torch.zeros_like(b))
        if alpha < 1:
            gradient += log_q
    if alpha < 1:
        gradients.subtract_labels(gradient, labels, b, epsilon)
    return gradient, torch.stack([divergence.sum(), label.sum()])


def _target(problem: _Problem, part: slice, scratch: Scratch) -> ChunkTarget | None:
    settings, taught = problem.settings, problem.taught
    if settings.alpha and taught is None:
        raise ValueError(f"taught = None: needed with alpha = {settings.alpha}")
    if not settings.alpha or taught is None or taught.top_k:
        return None
    log = settings.divergence != "forward_kl"
    return chunk_target(taught, part, settings.temperature, settings.pool, log, scratch)


def _divergence(
    problem: _Problem, part: slice, target: ChunkTarget | None, log_q: torch.Tensor, scratch: Scratch, b: torch.Tensor
) -> torch.Tensor:
    """(c,) of a chunk. Leaves in `log_q` its share of the gradient, plus b q."""
    settings, taught, work = problem.settings, problem.taught, scratch.take("a", len(log_q))
    assert taught is not None
    distill = taught.distill[part]
    share = settings.alpha * settings.of_temperature / settings.temperature / at_least_one(problem.counts[0])
    a = (distill * share).float().unsqueeze(-1)
    if target is None:
        known = [of_slice(part) for of_slice in taught.top_k]
        divergence = gradients.top_k(known, taught.weights[:, part] / len(known), log_q, a, b)
    elif settings.divergence == "forward_kl":
        divergence = gradients.forward_kl(target, log_q, work, a, b)
    elif settings.divergence == "reverse_kl":
        divergence = gradients.reverse_kl(target.values, log_q, work, a, b)
    elif isinstance(settings.divergence, OwnFunction):
        divergence = own_gradient(settings.divergence, target.values, log_q, a, b)
    else:
        divergence = gradients.jsd(target.values, log_q, work, a, b, settings.beta)
    return divergence.masked_fill(~distill, 0)
