"""The official SQuAD v2.0 figures of given answers."""

from collections.abc import Iterable, Mapping
from typing import Any

from raykd.tasks.squad_v2 import score_questions


def squad_v2_scores(
    predictions: Mapping[Any, str],
    references: Iterable[Mapping[str, Any]],
    no_answer_probabilities: Mapping[Any, float] | None = None,
    no_answer_threshold: float = 1.0,
) -> dict[str, float]:
    """The official SQuAD v2.0 figures: exact, f1, total, HasAns_*, NoAns_*, best_*; in percent.

    predictions: id -> text, "" for no answer. references: rows with `id` and `answers`; an empty
    `answers["text"]` is unanswerable. Without probabilities every one is 0.0 and there is no `best_*`.
    """
    scores = score_questions(predictions, references)
    if no_answer_probabilities is not None:
        missing = [key for key in scores.f1 if key not in no_answer_probabilities]
        if missing:
            raise ValueError(f"no no-answer probability for question {missing[0]!r}: every question needs one")
    return scores.summary(no_answer_probabilities, no_answer_threshold)
