"""What a model says of a decision over a large vocabulary, in few fp16 numbers.

All logits of a token over 151,936 classes are 304 kB in fp16. Two smaller forms are kept instead, each as one row of
fp16 numbers, so that they are sent and stored as logits are:

    scores  6        the model's first choice (2), log-probability of the true class (2), entropy (2)
    hidden  7 + d    scores, an exponent, and the last hidden state, from which the model's head computes all logits
    top_k   8 + 3 K  scores, logsumexp of all logits (2), the K largest logits, and their classes (2 K)

A class is two numbers, its lowest 11 bits and the rest, because fp16 is exact up to 2048. A quantity of two numbers is
their sum: its value in fp16, and what that leaves over, 22 bits in all.
"""

import math
from dataclasses import dataclass

import torch

from raykd.distillation.errors import NotFiniteError

SCORES = 6
_DIGIT = 2048
_MANY = 8192  # values; among fewer, one search over all is as fast
_ALIGNED = 16  # the number of groups is a multiple: otherwise a CPU takes five times as long for their largest values
_LARGEST_STATE = 2.0**15  # below fp16's largest number, with room for rounding


@dataclass(frozen=True)
class Scores:
    """What weights, metrics and reports need of each decision; all (...,).

    choice: int64, the model's most probable class.
    log_likelihood: fp32, log-probability of the true class; of the next token in a text, with or without a label.
    entropy: fp32, of the model's distribution, in nats.
    """

    choice: torch.Tensor
    log_likelihood: torch.Tensor
    entropy: torch.Tensor


def pack_scores(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """(..., 6) fp16. logits: (..., C) float. true: (...,) int64, the true class.

    Raises NotFiniteError if a logit is NaN or infinite.
    """
    packed = pack_scores_unchecked(logits, true)
    check_finite(packed)
    return packed


def check_finite(packed: torch.Tensor) -> None:
    """Raise NotFiniteError if a logit of any decision was not finite. packed: (..., F) fp16 in any of the forms."""
    if packed[..., 0].isnan().any():
        raise NotFiniteError("logits that are not finite")


@torch.no_grad()
def pack_scores_unchecked(
    logits: torch.Tensor, true: torch.Tensor, buffers: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """As `pack_scores`, but the first number is NaN if a logit is not finite: to raise an error would wait for a GPU.

    buffers: of the logits' shape, in fp32, that are written to; the first one has the log-probabilities afterwards. A
        new tensor of megabytes takes a CPU longer than a softmax over it.
    """
    first, second = buffers or (None, None)
    log_p = torch.log_softmax(logits.float(), -1, out=first)
    likelihood = log_p.gather(-1, true.unsqueeze(-1)).squeeze(-1)
    entropy = -torch.exp(log_p, out=second).mul_(log_p).sum(-1)
    low, high = _digits(first_largest(log_p))
    finite = (likelihood + entropy).isfinite()  # one NaN or inf among a row's logits makes one of them not finite
    low = torch.where(finite, low, torch.nan)
    return torch.stack([low, high, *_two_halves(likelihood), *_two_halves(entropy)], -1)


@torch.no_grad()
def pack_hidden(scores: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """(..., 7 + d) fp16. scores: (..., 6), of `pack_scores`. states: (..., d) float, what enters the model's head.

    States that do not fit fp16 are divided by a power of two first, which is the exponent.
    """
    states = states.float()
    largest = states.abs().amax(-1, keepdim=True)
    exponent = torch.log2(largest / _LARGEST_STATE).ceil().clamp(min=0)
    return torch.cat([scores, exponent.half(), (states / 2**exponent).half()], -1)


@torch.no_grad()
def pack_top_k(scores: torch.Tensor, logits: torch.Tensor, k: int, log_p: torch.Tensor | None = None) -> torch.Tensor:
    """(..., 8 + 3 K) fp16. scores: (..., 6), of `pack_scores`. logits: (..., C) float, C >= K.

    log_p: (..., C) fp32, the logits' log-probabilities, if they are at hand.

    The largest logit is subtracted from all, so it is 0, and the logsumexp is between 0 and log C.
    """
    log_p = torch.log_softmax(logits.float(), -1) if log_p is None else log_p
    values, classes = largest(logits.float(), k)
    first = values[..., :1]
    total = -log_p.gather(-1, classes[..., :1]).squeeze(-1)
    relative = (values - first).clamp(min=torch.finfo(torch.float16).min).half()
    return torch.cat([scores, torch.stack(_two_halves(total), -1), relative, *_digits(classes)], -1)


def largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., k) values and their int64 positions, the largest first. values: (..., C), C >= k.

    As `Tensor.topk`, which on a CPU takes 150 microseconds for 64 of 49,152. Here every group of values is searched for
    its largest one first, which is a pass at the speed of memory. The k largest values are in the k groups with the
    largest ones, and only those groups are looked at again.
    """
    classes = values.shape[-1]
    size = 2 ** round(math.log2(classes / k) / 2)  # of a group: about as many groups as values that are looked at again
    groups = classes // size // _ALIGNED * _ALIGNED
    if values.device.type != "cpu" or classes < _MANY or groups < k:
        return values.topk(k, -1)
    grouped = values[..., : groups * size].unflatten(-1, (size, groups))  # a group: every groups-th value
    chosen = grouped.amax(-2).topk(k, -1, sorted=False).indices
    positions = (chosen.unsqueeze(-1) + groups * torch.arange(size)).flatten(-2)
    rest = torch.arange(groups * size, classes).expand(*values.shape[:-1], -1)  # in no group
    positions = torch.cat([positions, rest], -1)
    found, where = values.gather(-1, positions).topk(k, -1)
    return found, positions.gather(-1, where)


def first_largest(values: torch.Tensor) -> torch.Tensor:
    """(...,) int64, the position of the largest value, the first one if several are equal. values: (..., C).

    As `Tensor.max`, which on a CPU takes several times as long as a pass over memory.
    """
    if values.device.type != "cpu" or values.shape[-1] < _MANY:
        return values.max(-1).indices  # faster than argmax
    (first, second), positions = (each.unbind(-1) for each in largest(values, 2))
    return values.max(-1).indices if (first == second).any() else positions[0]


def read_scores(packed: torch.Tensor) -> Scores:
    """packed: (..., F) fp16 in any of the three forms."""
    low, high, likelihood, rest, entropy, left = packed[..., :SCORES].float().unbind(-1)
    return Scores((low + _DIGIT * high).long(), likelihood + rest, entropy + left)


def read_hidden(packed: torch.Tensor, width: int) -> torch.Tensor:
    """(..., d) fp32, the last hidden states. width: d; what follows them pads shorter ones."""
    states = packed[..., SCORES + 1 : SCORES + 1 + width].float()
    return (
        states * 2 ** packed[..., SCORES : SCORES + 1].float()
    )  # without asking whether one is above 0: a GPU would wait


@dataclass(frozen=True)
class TopK:
    """log_p: (..., K) fp32, log-probabilities of the K most probable classes. classes: (..., K) int64."""

    log_p: torch.Tensor
    classes: torch.Tensor

    @property
    def log_tail(self) -> torch.Tensor:
        """(...,) fp32: log of the probability of all other classes together, at least 1e-7 of the whole.

        In fp32 a smaller difference from 1 means nothing.
        """
        return torch.log1p(-self.log_p.exp().sum(-1).clamp(max=1 - 1e-7))


def read_top_k(packed: torch.Tensor) -> TopK:
    """packed: (..., 8 + 3 K) fp16."""
    values = packed[..., SCORES:].float()
    k = (values.shape[-1] - 2) // 3
    total = values[..., :2].sum(-1)
    logits, low, high = values[..., 2:].split(k, -1)
    return TopK(logits - total.unsqueeze(-1), (low + _DIGIT * high).long())


def _digits(classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (classes % _DIGIT).half(), (classes // _DIGIT).half()


def _two_halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first = values.half()
    return first, (values - first.float()).half()
