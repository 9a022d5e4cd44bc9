"""The figures of the official SQuAD v2.0 evaluation (Rajpurkar, Jia and Liang 2018), to the last digit.

"To the last digit" is why some lines look odd: values are added one by one in the order of the
references, and a score is an int where the official one is, because since Python 3.12 `sum` rounds a
list of ints and floats differently from a list of floats.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only: a curly quote stays
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, then no punctuation, then no articles, then single spaces; the order matters ("a.m.")."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def overlap_f1(gold: list[str], predicted: list[str]) -> float:
    """F1 of two bags of tokens; an empty bag agrees with an empty bag only."""
    if not gold or not predicted:
        return int(gold == predicted)
    same = sum((Counter(gold) & Counter(predicted)).values())
    if same == 0:
        return 0
    precision, recall = same / len(predicted), same / len(gold)
    return (2 * precision * recall) / (precision + recall)


@dataclass(frozen=True)
class AnswerScores:
    """Questions scored one by one, before any no-answer threshold; every dict is keyed by id.

    answerable: whether the reference has an answer.
    text: the prediction.
    exact, f1: the best over the gold answers, 0 to 1.
    """

    answerable: dict[Hashable, bool]
    text: dict[Hashable, str]
    exact: dict[Hashable, float]
    f1: dict[Hashable, float]

    def with_threshold(
        self, scores: dict[Hashable, float], probabilities: Mapping[Any, float], threshold: float
    ) -> dict[Hashable, float]:
        """Scores where a no-answer probability *above* the threshold stands for an empty prediction."""
        return {
            key: float(not self.answerable[key]) if probabilities[key] > threshold else score
            for key, score in scores.items()
        }

    def best_threshold(self, scores: dict[Hashable, float], probabilities: Mapping[Any, float]) -> tuple[float, float]:
        """(score in percent, threshold) of the best cut, found on the very labels that it scores.

        Starts with "no answer" everywhere and accepts predictions from the most confident on. Of equal
        totals the first counts, and questions of equal probability are taken one by one, in the order of
        `probabilities`, so a tie can report a score that no threshold reaches. So does the official one.
        """
        current: float = sum(not answerable for answerable in self.answerable.values())
        best, threshold = current, 0.0
        for key in sorted(probabilities, key=lambda k: probabilities[k]):
            if key not in scores:
                continue
            if self.answerable[key]:
                current += scores[key]
            elif self.text[key]:
                current -= 1
            if current > best:
                best, threshold = current, probabilities[key]
        return 100.0 * best / len(scores), threshold

    def summary(self, probabilities: Mapping[Any, float] | None = None, threshold: float = 1.0) -> dict[str, float]:
        """The official figures under the official names; `best_*` only where there are probabilities."""
        known = dict.fromkeys(self.f1, 0.0) if probabilities is None else probabilities
        exact = self.with_threshold(self.exact, known, threshold)
        f1 = self.with_threshold(self.f1, known, threshold)
        out: dict[str, float] = {}
        for prefix, keys in (
            ("", list(self.f1)),
            ("HasAns_", [key for key, answerable in self.answerable.items() if answerable]),
            ("NoAns_", [key for key, answerable in self.answerable.items() if not answerable]),
        ):
            if keys:
                out[prefix + "exact"] = 100.0 * sum(exact[key] for key in keys) / len(keys)
                out[prefix + "f1"] = 100.0 * sum(f1[key] for key in keys) / len(keys)
                out[prefix + "total"] = len(keys)
        if probabilities is not None:
            out["best_exact"], out["best_exact_thresh"] = self.best_threshold(self.exact, probabilities)
            out["best_f1"], out["best_f1_thresh"] = self.best_threshold(self.f1, probabilities)
        return out


def score_questions(predictions: Mapping[Any, str], references: Iterable[Mapping[str, Any]]) -> AnswerScores:
    """Every reference's exact match and F1. Rows have `id` and `answers` = {"text": [...], ...}."""
    scores = AnswerScores({}, {}, {}, {})
    for row in references:
        key, answers = row["id"], list(row["answers"]["text"])
        if key not in predictions:  # the official script prints so, and then dies of a KeyError
            raise ValueError(f"no prediction for question {key!r}: every question needs one, '' for no answer")
        # Only the empty string is right where every gold answer normalises to nothing ("The").
        gold = [text for text in map(normalize, answers) if text] or [""]
        predicted = normalize(predictions[key])
        scores.answerable[key] = bool(answers)
        scores.text[key] = predictions[key]
        scores.exact[key] = max(int(text == predicted) for text in gold)
        scores.f1[key] = max(overlap_f1(text.split(), predicted.split()) for text in gold)
    if not scores.f1:
        raise ValueError("there are no questions to score")
    return scores
