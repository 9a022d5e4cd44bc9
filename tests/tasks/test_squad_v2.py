"""The official SQuAD v2.0 figures, against values worked out by hand."""

import sys

import pytest
from squad_scores import squad_v2_scores

from raykd.tasks.squad_v2 import normalize, overlap_f1, score_questions


def row(key, *texts):
    return {"id": key, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick\tFox ", "quick fox"),
        ("a.m.", "am"),  # punctuation goes before articles: else "m" would be left
        ("A-n", ""),  # for the same reason
        ("the-end", "theend"),  # punctuation is deleted, not made a space
        ("theory of an ant", "theory of ant"),
        ("“Normans”", "“normans”"),  # only ASCII punctuation goes
        ("snake_case", "snakecase"),
        ("", ""),
        ("The", ""),
    ],
)
def test_normalization_order(text, expected):
    assert normalize(text) == expected


def test_overlap_counts_repeated_tokens_and_keeps_the_official_arithmetic():
    # "x x y" and "x z" share one x: precision 1/2, recall 1/3.
    assert overlap_f1(["x", "x", "y"], ["x", "z"]) == (2 * 0.5 * (1 / 3)) / (0.5 + 1 / 3)
    # "x x y" and "x x z" share two: 2/3 and 2/3.
    assert overlap_f1(["x", "x", "y"], ["x", "x", "z"]) == (2 * (2 / 3) * (2 / 3)) / (2 / 3 + 2 / 3)
    # Precision 1/5, recall 1: 2PR / (P + R) and 2/6 are the same number, but not the same float.
    assert overlap_f1(["x"], list("xpqrs")) == (2 * 0.2 * 1.0) / (0.2 + 1.0) != 2 / 6
    assert overlap_f1(["x"], ["y"]) == 0
    assert overlap_f1([], []) == 1
    assert overlap_f1(["x"], []) == overlap_f1([], ["x"]) == 0


def test_figures_by_hand():
    references = [
        row("q1", "Normandy", "the Normandy region"),  # exact with the first, after normalisation
        row("q2", "big red dog"),  # 2 of 4 predicted, 2 of 3 gold: F1 = 4/7
        row("q3", "France", "Paris"),  # the best of the gold answers counts
        row("q4"),  # unanswerable and predicted so
        row("q5"),  # unanswerable, predicted otherwise
    ]
    predictions = {"q1": "  NORMANDY!", "q2": "red dog barks loudly", "q3": "paris", "q4": "", "q5": "Rome"}
    scores = squad_v2_scores(predictions, references)
    f1 = (2 * 0.5 * (2 / 3)) / (0.5 + 2 / 3)
    assert scores == {
        "exact": 100.0 * 3 / 5,
        "f1": 100.0 * sum([1.0, f1, 1.0, 1, 0]) / 5,
        "total": 5,
        "HasAns_exact": 100.0 * 2 / 3,
        "HasAns_f1": 100.0 * sum([1.0, f1, 1.0]) / 3,
        "HasAns_total": 3,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }
    assert list(scores)[:6] == ["exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total"]


def test_percent_is_multiplied_before_it_is_divided():
    references = [row(i, "x") for i in range(100)]
    predictions = {i: "x" if i < 29 else "y" for i in range(100)}
    scores = squad_v2_scores(predictions, references, dict.fromkeys(predictions, 0.5))
    assert scores["exact"] == scores["f1"] == scores["best_exact"] == 29.0 != 100.0 * (29 / 100)


def test_the_sum_runs_in_the_order_of_the_references():
    # F1 of 2/3, 0.4 and 1/2: adding them in another order gives another last digit.
    texts = {"a": ("x", "x y"), "b": ("x x y", "x z"), "c": ("x p", "x r")}
    values = {key: overlap_f1(gold.split(), text.split()) for key, (gold, text) in texts.items()}
    totals = set()
    for order in ("abc", "bca", "cab"):
        references = [row(key, texts[key][0]) for key in order]
        got = squad_v2_scores({key: text for key, (_, text) in texts.items()}, references)
        assert got["f1"] == got["HasAns_f1"] == 100.0 * sum([values[key] for key in order]) / 3
        totals.add(got["f1"])
    if sys.version_info < (3, 12):  # from then on `sum` compensates for rounding
        assert len(totals) == 2


def test_gold_answers_that_normalise_to_nothing():
    dropped = [row("q", "The", "cat")]
    assert squad_v2_scores({"q": ""}, dropped)["exact"] == 0.0  # "The" is dropped, so "" is wrong
    only = [row("q", "The", "...")]
    assert squad_v2_scores({"q": ""}, only) == {
        "exact": 100.0, "f1": 100.0, "total": 1, "HasAns_exact": 100.0, "HasAns_f1": 100.0, "HasAns_total": 1
    }  # fmt: skip
    assert squad_v2_scores({"q": "an"}, only)["f1"] == 100.0
    assert squad_v2_scores({"q": "cat"}, only)["f1"] == 0.0
    # And yet it counts as answerable: the threshold's "no answer" is wrong where an empty text was right.
    assert squad_v2_scores({"q": ""}, only, {"q": 0.9}, 0.5)["exact"] == 0.0


def test_threshold_is_exceeded_not_reached():
    references = [row("q1", "x"), row("q2")]
    predictions = {"q1": "x", "q2": "y"}
    probabilities = {"q1": 0.25, "q2": 0.5}
    assert squad_v2_scores(predictions, references, probabilities, 0.5)["exact"] == 50.0
    assert squad_v2_scores(predictions, references, probabilities, 0.4)["exact"] == 100.0
    assert squad_v2_scores(predictions, references, probabilities, 0.25)["exact"] == 100.0
    assert squad_v2_scores(predictions, references, probabilities, 0.2)["exact"] == 50.0
    assert squad_v2_scores(predictions, references, probabilities)["exact"] == 50.0  # 1.0 is never exceeded
    # Without probabilities each is 0.0, which exceeds a negative threshold only.
    assert squad_v2_scores(predictions, references, None, 0.0)["HasAns_exact"] == 100.0
    assert squad_v2_scores(predictions, references, None, -1.0)["HasAns_exact"] == 0.0


def test_blocks_appear_only_where_they_have_questions():
    assert "NoAns_total" not in squad_v2_scores({"q": "x"}, [row("q", "x")])
    assert "HasAns_total" not in squad_v2_scores({"q": "x"}, [row("q")])
    assert "best_f1" not in squad_v2_scores({"q": "x"}, [row("q")])
    assert "best_f1" in squad_v2_scores({"q": "x"}, [row("q")], {"q": 0.0})


def test_best_threshold_by_hand():
    references = [row("q1", "x"), row("q2", "big red dog"), row("q3"), row("q4"), row("q5", "z")]
    predictions = {"q1": "x", "q2": "red dog", "q3": "y", "q4": "", "q5": "z"}
    probabilities = {"q5": 0.9, "q4": 0.4, "q3": 0.6, "q2": 0.2, "q1": 0.1}
    scores = squad_v2_scores(predictions, references, probabilities)
    # From 2 (all "no answer"): q1 +1 = 3, q2 +0 / +0.8, q4 "" +0, q3 -1, q5 +1 = 3: not above the first 3.
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (60.0, 0.1)
    f1 = (2 * 1.0 * (2 / 3)) / (1.0 + 2 / 3)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (100.0 * (3 + f1) / 5, 0.2)


def test_an_empty_text_is_as_good_as_no_answer():
    references = [row("q1"), row("q2", "x")]
    scores = squad_v2_scores({"q1": "", "q2": "x"}, references, {"q1": 0.1, "q2": 0.2})
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (100.0, 0.2)


def test_best_threshold_is_zero_where_no_answer_is_best():
    scores = squad_v2_scores({"q1": "x", "q2": "y"}, [row("q1"), row("q2")], {"q1": 0.3, "q2": 0.4})
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (100.0, 0.0)


def test_ties_are_taken_in_the_order_of_the_probabilities():
    references = [row("q1", "x"), row("q2")]
    predictions = {"q1": "x", "q2": "y"}
    first = squad_v2_scores(predictions, references, {"q1": 0.5, "q2": 0.5})
    assert (first["best_exact"], first["best_exact_thresh"]) == (100.0, 0.5)  # which no threshold reaches
    other = squad_v2_scores(predictions, references, {"q2": 0.5, "q1": 0.5})
    assert (other["best_exact"], other["best_exact_thresh"]) == (50.0, 0.0)


def test_best_threshold_looks_at_the_raw_text():
    # "the" is right by normalisation, but a text all the same, so it costs a point.
    scores = squad_v2_scores({"q1": "the", "q2": "x"}, [row("q1"), row("q2", "x")], {"q1": 0.1, "q2": 0.2})
    assert scores["NoAns_exact"] == 100.0
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (50.0, 0.0)


def test_unknown_questions_are_ignored_and_missing_ones_refused():
    references = [row("q1", "x")]
    known = squad_v2_scores({"q1": "x"}, references, {"q1": 0.5})
    assert squad_v2_scores({"q0": "y", "q1": "x"}, references, {"q0": 0.1, "q1": 0.5}) == known
    with pytest.raises(ValueError, match="'q1'"):
        squad_v2_scores({"q0": "x"}, references)
    with pytest.raises(ValueError, match="probability for question 'q1'"):
        squad_v2_scores({"q1": "x"}, references, {"q0": 0.5})
    with pytest.raises(ValueError, match="no questions"):
        squad_v2_scores({}, [])


def test_scores_of_single_questions():
    scores = score_questions({"q1": "x y", "q2": "z"}, [row("q1", "x"), row("q2")])
    assert scores.f1 == {"q1": 2 / 3, "q2": 0}
    assert scores.with_threshold(scores.f1, {"q1": 0.1, "q2": 0.9}, 0.5) == {"q1": 2 / 3, "q2": 1.0}
