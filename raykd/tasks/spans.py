"""Answer spans: converts characters to a window's tokens, and start and end logits to the best span."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raykd.tasks.common import NO_LABEL

CHUNK = 128  # windows in a chunk: 128 x 384 x 2 float64 is below 1 MB, so that each chunk stays in the CPU's cache


def first_answer(answers: dict[str, list]) -> tuple[int, int] | None:
    """The characters [start, end) of the first gold answer, without space around it; None if unanswerable.

    The first one trains and all of them score.
    """
    if not answers["text"] or not answers["text"][0].strip():
        return None
    text, start = answers["text"][0], answers["answer_start"][0]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def locate(
    answer: tuple[int, int] | None, starts: list[int], ends: list[int], opening: bool, closing: bool
) -> tuple[int, int] | None:
    """First and last token of an answer that is completely inside a window; otherwise None.

    starts, ends: the characters of the window's context tokens.
    opening: whether the window contains the start of the context; otherwise the answer can begin before it.
    closing: whether it contains the end of the context; otherwise the answer can continue after it.
    """
    if answer is None or not starts:
        return None
    first = bisect_right(ends, answer[0])  # the first token that ends after the answer's start
    last = bisect_left(starts, answer[1]) - 1  # the last token that starts before the answer's end
    if first > last:  # outside, or of characters that the tokenizer drops
        return None
    cut_before = first == 0 and not opening and starts[0] > answer[0]
    cut_after = last == len(ends) - 1 and not closing and ends[-1] < answer[1]
    return None if cut_before or cut_after else (first, last)


@dataclass(frozen=True)
class Spans:
    """The best span of each of N windows.

    margin: (N,) (start + end) of the best span minus (start + end) of CLS; -inf where there is no span.
    first, last: (N,) its tokens, both inclusive, counted from the window's first context token.
    nll: (N, 2) -log softmax over the allowed positions at the gold start and end; NaN without a label.
    """

    margin: np.ndarray
    first: np.ndarray
    last: np.ndarray
    nll: np.ndarray


def read_spans(
    logits: Sequence[np.ndarray],
    context_start: np.ndarray,
    context_end: np.ndarray,
    labels: np.ndarray,
    max_answer_length: int,
) -> Spans:
    """Decode N windows. logits: N of (2, C); context_start, context_end: (N,), end exclusive; labels: (N, 2).

    Position 0 is CLS. Nothing outside CLS and the context is read, and a constant added to all the
    starts or all the ends of a window changes nothing.
    """
    parts = []
    for at in range(0, len(logits), CHUNK):
        chunk = slice(at, at + CHUNK)
        some = [logits[row] for row in range(at, min(at + CHUNK, len(logits)))]  # int, because it can be lazy
        parts.append(_read_chunk(some, context_start[chunk], context_end[chunk], labels[chunk], max_answer_length))
    return Spans(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _read_chunk(
    logits: Sequence[np.ndarray],
    start: np.ndarray,
    end: np.ndarray,
    labels: np.ndarray,
    max_answer_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows, width = len(logits), int((end - start).max())
    # (2, rows, 1 + width): CLS, then the context's tokens, then -inf. Float64 because scores that come as
    # float16, shifted by some constant, must not be rounded a second time by the subtraction of CLS.
    scores = np.full((2, rows, 1 + width), -np.inf)
    for row, (window, a, b) in enumerate(zip(logits, start.tolist(), end.tolist(), strict=True)):
        scores[:, row, 0] = window[:, 0]
        scores[:, row, 1 : 1 + b - a] = window[:, a:b]

    peak = scores.max(axis=2, keepdims=True)
    # Summed from left to right, so a window's sum does not depend on the chunk's width, as that of `sum` does.
    log_sum = peak[..., 0] + np.log(np.exp(scores - peak).cumsum(axis=2)[..., -1])
    gold = np.where(labels > 0, labels - start[:, None] + 1, 0).T  # (2, rows), into `scores`
    at_gold = np.take_along_axis(scores, gold[..., None], axis=2)[..., 0]
    nll = np.where(labels.T == NO_LABEL, np.nan, log_sum - at_gold).T

    # Every span of `extra` + 1 tokens at once, for each length: a band of the (width, width) sums,
    # so 30 passes over the windows instead of a (rows, width, width) array.
    starts, ends = (scores[side, :, 1:] - scores[side, :, :1] for side in (0, 1))
    best = np.full((rows, width), -np.inf)  # by first token
    extra_tokens = np.zeros((rows, width), dtype=np.int64)
    for extra in range(min(max_answer_length, width)):
        margin = starts[:, : width - extra] + ends[:, extra:]
        better = margin > best[:, : width - extra]  # of equal spans the shortest stays
        np.copyto(best[:, : width - extra], margin, where=better)
        extra_tokens[:, : width - extra][better] = extra
    if width == 0:
        nothing = np.zeros(rows, dtype=np.int64)
        return np.full(rows, -np.inf), nothing, nothing, nll
    first = best.argmax(axis=1)
    every = np.arange(rows)
    return best[every, first], first, first + extra_tokens[every, first], nll
