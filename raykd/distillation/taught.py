"""What a chunk of decisions over a large vocabulary is taught, computed in buffers that every chunk uses again.

A chunk's logits are tens of megabytes. On a CPU a new tensor of this size costs more than what is computed in it, since
the system gives it page by page; so nothing of the size (c, C) is allocated but by `Scratch`, once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from raykd.distillation.linear_head import LinearHead
from raykd.distillation.packed import TopK
from raykd.distillation.target import Pool

Slice = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class Hidden:
    """A teacher's logits as its head gives them. states: from a slice of the decisions to its states (c, d) fp32."""

    head: LinearHead
    states: Slice


@dataclass(frozen=True)
class Taught:
    """What the teachers teach, over D decisions, in one of three forms.

    weights: (M, D) fp32.
    distill: (D,) bool, the decisions that are distilled.
    logits: per teacher, from a slice of the decisions to its logits (c, C).
    top_k: per teacher, from a slice to the classes that are known.
    hidden: per teacher, its hidden states and its head.
    """

    weights: torch.Tensor
    distill: torch.Tensor
    logits: Sequence[Slice] = ()
    top_k: Sequence[Callable[[slice], TopK]] = ()
    hidden: Sequence[Hidden] = ()


class Scratch:
    """Buffers (c, C) in fp32, each of which is allocated when its name is first asked for."""

    def __init__(self, decisions: int, classes: int, device: torch.device) -> None:
        self.shape, self.device = (decisions, classes), device
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, decisions: int) -> torch.Tensor:
        """(decisions, C), with what was last written to it."""
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self.shape, dtype=torch.float32, device=self.device)
        return self._buffers[name][:decisions]


@dataclass(frozen=True)
class ChunkTarget:
    """p of a chunk, (c, C) fp32, or its logarithm; in a buffer that its user may write to."""

    values: torch.Tensor
    is_log: bool


@torch.no_grad()
def chunk_target(
    taught: Taught, part: slice, temperature: float, pool: Pool, log: bool, scratch: Scratch
) -> ChunkTarget:
    """`ensemble_target` of a chunk. It is left in the buffer "target"; "a" and "b" are written to.

    log: whether the logarithm is needed, exact where a probability is too small for a float. `pool: logits` always
    gives it.
    """
    weights = taught.weights[:, part] / len(taught.weights)  # (M, c), which sum to 1
    total, work, own = (scratch.take(name, weights.shape[1]) for name in ("target", "a", "b"))
    if pool == "logits":
        _add_logits(taught, part, weights / temperature, own, work)
        return ChunkTarget(torch.log_softmax(own, -1, out=total), is_log=True)
    for teacher, weight in enumerate(weights.unsqueeze(-1)):
        _logits_of(taught, teacher, part, temperature, work)
        if log:
            torch.log_softmax(work, -1, out=own).add_(weight.log())
            torch.logaddexp(total, own, out=total) if teacher else total.copy_(own)
        else:
            torch.softmax(work, -1, out=own)
            total.addcmul_(own, weight) if teacher else torch.mul(own, weight, out=total)
    return ChunkTarget(total, log)


def _add_logits(taught: Taught, part: slice, factors: torch.Tensor, total: torch.Tensor, work: torch.Tensor) -> None:
    """total = sum over teachers of factor_m z_m. factors: (M, c).

    A head is linear unless it is soft-capped: sum_m f_m (W_m h_m + b_m) needs no buffer for a single teacher's logits,
    and teachers with one head cost one matmul, W sum_m f_m h_m.
    """
    if not taught.hidden or any(each.head.softcap is not None for each in taught.hidden):
        for teacher, factor in enumerate(factors.unsqueeze(-1)):
            _logits_of(taught, teacher, part, 1.0, work)
            total.addcmul_(work, factor) if teacher else torch.mul(work, factor, out=total)
        return
    heads: list[LinearHead] = []
    states: list[torch.Tensor] = []  # of each head, factor times hidden state, summed over its teachers
    shares: list[torch.Tensor] = []  # of each head, factor, summed over its teachers
    for each, factor in zip(taught.hidden, factors.unsqueeze(-1), strict=True):
        known = next((i for i, head in enumerate(heads) if head is each.head), None)
        weighted = each.states(part) * factor
        if known is None:
            heads, states, shares = [*heads, each.head], [*states, weighted], [*shares, factor]
        else:
            states[known], shares[known] = states[known] + weighted, shares[known] + factor
    classes = total.shape[-1]
    for number, (head, weighted, share) in enumerate(zip(heads, states, shares, strict=True)):
        total.addmm_(weighted, head.weight[:classes].T, beta=min(number, 1), alpha=head.scale)
        if head.bias is not None:
            total.addcmul_(share, head.bias[:classes], value=head.scale)


def _logits_of(taught: Taught, teacher: int, part: slice, temperature: float, out: torch.Tensor) -> None:
    """out = z_m / T."""
    classes = out.shape[-1]
    if not taught.hidden:
        out.copy_(taught.logits[teacher](part))
    else:
        head, states = taught.hidden[teacher].head, taught.hidden[teacher].states(part)
        torch.mm(states, head.weight[:classes].T, out=out)
        if head.bias is not None:
            out.add_(head.bias[:classes])
        if head.scale != 1:
            out.mul_(head.scale)
        if head.softcap is not None:
            out.div_(head.softcap).tanh_().mul_(head.softcap)
    if temperature != 1:
        out.div_(temperature)
