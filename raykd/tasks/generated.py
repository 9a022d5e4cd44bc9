"""What a language model writes after a prompt, scored against the answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset

from raykd.tasks.common import Evaluation
from raykd.tasks.squad_v2 import normalize, overlap_f1

METRICS = ("exact_match", "answer_f1", "rouge_l")


def chosen_rows(count: int, most: int) -> np.ndarray:
    """The positions of the rows for which texts are generated, ascending: the same for all models."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """A raw row's answers: those of its column `answers`, or else its completion, or what the assistant said last."""
    given = row.get("answers")
    if isinstance(given, Mapping):  # as in SQuAD
        given = given["text"]
    if given:
        return [given] if isinstance(given, str) else list(given)
    if "completion" in row:
        return [row["completion"]]
    return [next(m.get("content") or "" for m in reversed(row["messages"]) if m["role"] == "assistant")]


def without_thoughts(text: str) -> str:
    """The answer that follows the thoughts of a model that thinks first, as Qwen3 and DeepSeek-R1 do.

    "" if the thoughts do not end. Where the prompt has their beginning, thoughts that do not end look like an answer.
    """
    answer = text.rpartition("</think>")[2]
    return "" if answer == text and text.lstrip().startswith("<think>") else answer


def score(text: str, answers: Sequence[str]) -> dict[str, float]:
    """The best over the answers, each from 0 to 1.

    Exact match and F1 are those of SQuAD (Rajpurkar et al. 2016): of words, without case, punctuation and articles.
    ROUGE-L (Lin 2004) is the F-measure of the longest common subsequence of words, as the package rouge-score computes
    it without a stemmer. Thoughts before an answer do not count, on either side.
    """
    text, answers = without_thoughts(text), [without_thoughts(answer) for answer in answers]
    words, found = normalize(text).split(), rouge_words(text)
    return {
        "exact_match": max(float(normalize(text) == normalize(answer)) for answer in answers),
        "answer_f1": max(float(overlap_f1(normalize(answer).split(), words)) for answer in answers),
        "rouge_l": max(rouge_l(rouge_words(answer), found) for answer in answers),
    }


def rouge_words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).split()


def rouge_l(gold: Sequence[str], found: Sequence[str]) -> float:
    """F-measure of the longest common subsequence; 0 if either is empty."""
    lengths = [0] * (len(found) + 1)  # of the subsequence that the gold words so far share with each beginning of found
    for word in gold:
        before = 0
        for at, other in enumerate(found, 1):
            before, lengths[at] = lengths[at], before + 1 if word == other else max(lengths[at], lengths[at - 1])
    if (common := lengths[-1]) == 0:
        return 0.0
    precision, recall = common / len(found), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def with_generated(evaluation: Evaluation, texts: Mapping[int, str], raw: Dataset) -> Evaluation:
    """The evaluation with the means over the rows that have a text, and with these rows' texts.

    texts: by the raw row's position.
    """
    scores = {i: score(text, answers_of(raw[i])) for i, text in texts.items()}
    metrics = {name: float(np.mean([found[name] for found in scores.values()])) for name in METRICS}
    predictions = [
        row | ({"generated": texts[i], **scores[i]} if i in scores else {})
        for i, row in enumerate(evaluation.predictions)
    ]
    return replace(evaluation, metrics=evaluation.metrics | metrics, predictions=predictions)
