"""Packs what is kept of a language model's decisions, a chunk of them at a time, and scores an ensemble from it."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raykd.common.errors import ConfigError
from raykd.common.transfer import places
from raykd.distillation.chunked import CHUNK_LOGITS
from raykd.distillation.linear_head import LinearHead
from raykd.distillation.packed import (
    SCORES,
    pack_hidden,
    pack_scores,
    pack_scores_unchecked,
    pack_top_k,
    read_hidden,
    read_scores,
    read_top_k,
)
from raykd.distillation.taught import Scratch
from raykd.logits import LogitStore, TeacherKey
from raykd.logits.heads import head_on
from raykd.logits.keep import Keep
from raykd.models.language import LanguageHead, States

_IN_CACHE = 2**21  # logits that are scored at once on a CPU, 8 MB
_LEAST = 1e-9  # of a teacher's tail: what is left after rounding


def pack_unchecked(
    outputs: Sequence[States], exists: torch.Tensor, true: torch.Tensor, classes: int, keep: Keep
) -> torch.Tensor:
    """(D, F) fp16, row after row, of the D decisions that exist. Without a wait for a GPU: see `pack_scores_unchecked`.

    outputs: of each model, whose logits are averaged; for "hidden" there can be only one.
    exists: (B, H) bool, on the host.
    true: (B, H) int64, the true class of each decision.
    classes: C; further ones that a model has are cut.
    """
    at = places(exists, true.device)
    states, gold = [_at(each.states, at) for each in outputs], _at(true, at)
    size = max(16, CHUNK_LOGITS // classes)
    scratch = Scratch(min(size, len(gold)), classes, gold.device)
    packed = [
        _pack([s[start : start + size] for s in states], outputs, gold[start : start + size], classes, keep, scratch)
        for start in range(0, max(1, len(gold)), size)
    ]
    return torch.cat(packed)


def _at(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """(D, ...) of (B, H, ...)."""
    return values.flatten(0, 1).index_select(0, at)


def _pack(
    states: Sequence[torch.Tensor],
    outputs: Sequence[States],
    gold: torch.Tensor,
    classes: int,
    keep: Keep,
    scratch: Scratch,
) -> torch.Tensor:
    if len(outputs) == 1:
        logits = _logits(outputs[0].head, states[0], classes, scratch)
    else:
        each = [model.head(s.float())[:, :classes].float() for model, s in zip(outputs, states, strict=True)]
        logits = torch.stack(each).mean(0)
    # A CPU goes over a few megabytes of logits several times faster than over all, because they stay in its cache.
    rows = len(gold) if gold.is_cuda else min(len(gold), max(1, _IN_CACHE // classes))
    buffers, packed = torch.empty((2, rows, classes), device=gold.device), []
    for start in range(0, max(1, len(gold)), max(1, rows)):
        part, true = logits[start : start + rows], gold[start : start + rows]
        log_p, other = buffers[:, : len(true)]
        scores = pack_scores_unchecked(part, true, (log_p, other))
        packed.append(pack_top_k(scores, part, keep.k, log_p) if keep.form == "top_k" else scores)
    if keep.form != "hidden":
        return torch.cat(packed)
    (only,) = states
    return pack_hidden(torch.cat(packed), only)


def _logits(head: LanguageHead, states: torch.Tensor, classes: int, scratch: Scratch) -> torch.Tensor:
    """(c, C) fp32; if the head is a matmul, in the buffer "a". states: (c, d)."""
    plain = matmul_head(head)
    if not isinstance(plain, LinearHead) or plain.bias is not None:
        return head(states.float())[:, :classes].float()
    return torch.mm(states.float(), plain.weight.detach()[:classes].T, out=scratch.take("a", len(states)))


@torch.no_grad()
def scores_of_ensemble(
    rows: Sequence[np.ndarray],
    labels: Sequence[Sequence[int]],
    classes: int,
    keep: Keep,
    store: LogitStore,
    keys: Sequence[TeacherKey],
) -> list[list[np.ndarray]]:
    """(H_i, 6) scores (`pack_scores`) of each row: a list per teacher and, last, of the mean of their logits.

    From the `top_k` form the ensemble is the mean of the teachers' distributions. Its log-likelihood is exact, because
    that of each teacher is kept. For its choice and entropy, the rest of a teacher's tail is spread evenly over the
    classes of which nothing is kept.

    rows: (M, H_i, F) of each row.
    labels: (H_i,) of each row, all of them classes.
    classes: C.
    """
    kept = torch.from_numpy(np.concatenate(rows, axis=1))  # (M, D, F)
    gold = torch.from_numpy(np.concatenate([np.asarray(row) for row in labels]))
    heads = [head_on(store, key, "cpu") for key in keys] if keep.form == "hidden" else []
    ends, parts, size = np.cumsum([row.shape[1] for row in rows])[:-1], [], max(16, CHUNK_LOGITS // classes)
    for start in range(0, len(gold), size):
        part = slice(start, start + size)
        parts.append(_ensemble_scores(kept[:, part], gold[part], classes, keep, heads))
    scores = torch.cat(parts, 1).numpy()  # (M + 1, D, 6)
    return [np.split(each, ends) for each in scores]


def _ensemble_scores(
    kept: torch.Tensor, gold: torch.Tensor, classes: int, keep: Keep, heads: Sequence[LinearHead]
) -> torch.Tensor:
    """(M + 1, c, 6). kept: (M, c, F)."""
    each = kept[..., :SCORES] if keep.packed else [pack_scores(logits, gold) for logits in kept.float()]
    return torch.stack([*each, pack_scores(_of_ensemble(kept, gold, classes, keep, heads), gold)])


def _of_ensemble(
    kept: torch.Tensor, true: torch.Tensor, classes: int, keep: Keep, heads: Sequence[LinearHead]
) -> torch.Tensor:
    """(c, C) logits of the ensemble, up to a constant for each decision. kept: (M, c, F). true: (c,) the true class."""
    if keep.form == "hidden":
        each = (h(read_hidden(s, h.weight.shape[1]))[:, :classes] for h, s in zip(heads, kept, strict=True))
        return functools.reduce(torch.add, each) / len(kept)
    if keep.form == "top_k":
        return functools.reduce(torch.logaddexp, (_spread(s, true, classes) for s in kept))
    return kept.float().mean(0)


@torch.no_grad()
def divergence_from_ensemble(
    output: States,
    exists: torch.Tensor,
    true: torch.Tensor,
    kept: torch.Tensor,
    classes: int,
    keep: Keep,
    heads: Sequence[LinearHead],
) -> torch.Tensor:
    """(D,) fp32: the KL divergence of a model from its teachers' ensemble, of each decision that exists, at T = 1.

    The ensemble is that of `scores_of_ensemble`.

    output: the model's.
    exists: (B, H) bool, on the host.
    true: (B, H) int64, the true class of each decision.
    kept: (M, D, F), what is kept of the teachers' logits of these decisions.
    classes: C; further ones that the model has are cut.
    heads: the teachers', for "hidden".
    """
    at, size = places(exists, true.device), max(16, CHUNK_LOGITS // classes)
    states, gold, parts = _at(output.states, at), _at(true, at), []
    for start in range(0, len(states), size):
        part = slice(start, start + size)
        log_q = torch.log_softmax(output.head(states[part].float())[:, :classes], -1)
        log_p = torch.log_softmax(_of_ensemble(kept[:, part], gold[part], classes, keep, heads), -1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)


def _spread(kept: torch.Tensor, true: torch.Tensor, classes: int) -> torch.Tensor:
    """(c, C) log-probabilities of one teacher.

    kept: (c, F) of the form `top_k`.
    true: (c,) the true class, whose log-probability is among the scores.
    """
    known, likelihood = read_top_k(kept), read_scores(kept).log_likelihood
    named = (known.classes == true[:, None]).any(-1)
    of_true = torch.where(named, 0, likelihood.exp())
    others = classes - known.classes.shape[-1] - (~named).long()  # of which nothing is kept
    rest = (known.log_tail.exp() - of_true).clamp(min=_LEAST).log() - others.clamp(min=1).log()
    spread = rest[:, None].expand(-1, classes).scatter(-1, true[:, None], likelihood[:, None])
    return spread.scatter(-1, known.classes, known.log_p)


def matmul_head(head: LanguageHead) -> LanguageHead | LinearHead:
    """As a `LinearHead` if the model's head is one in fp32 and no more: a matmul can write into a buffer."""
    module = head.module
    if type(module) is not torch.nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return head
    if module.weight.dtype != torch.float32 or (head.scale, head.divisor, head.cap) != (1.0, 1.0, None):
        return head
    return LinearHead(module.weight, module.bias)


def linear_head(model: Any, key: str) -> LinearHead:
    """The head of a language model as it is stored next to its hidden states.

    key: of the model, for errors. Raises ConfigError if the model's logits are not these of its head, for any state.
    """
    own_head, layer = LanguageHead(model), model.get_output_embeddings()
    weight, bias = layer.weight.detach().float(), getattr(layer, "bias", None)
    bias = None if bias is None else bias.detach().float()
    head = LinearHead(weight, bias, own_head.scale / own_head.divisor, own_head.cap)
    states = torch.linspace(-2, 2, 3 * weight.shape[1], device=weight.device).reshape(3, -1)
    with torch.inference_mode():
        own, ours = own_head(states).float(), head(states)
    if not torch.allclose(own, ours, rtol=1e-4, atol=1e-4 * float(own.abs().max())):
        reason = f"the head of {key} does more to a hidden state than raykd knows, so states are not enough"
        raise ConfigError("logits.keep", "hidden", reason, "Set logits.keep to all or {top_k: 64}")
    return head
