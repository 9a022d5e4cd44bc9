"""The founding table (benchmarks/founding): its intervals, the W that it chooses, and what is trained once."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from founding import table  # type: ignore[import-not-found]
from founding.known import Known  # type: ignore[import-not-found]


@pytest.mark.parametrize("level", [0.95, 0.998])
def test_with_few_sets_the_interval_is_that_of_a_mean(level):
    """Sets that differ, seeds and rows that do not: Student's interval of the mean of five numbers."""
    values = np.array([0.01, 0.03, -0.02, 0.02, 0.05])
    mean, low, high = table.interval(np.broadcast_to(values[:, None, None], (5, 4, 50)), level=level)
    half = t.ppf((1 + level) / 2, 4) * values.std(ddof=1) / np.sqrt(5)
    assert mean == pytest.approx(0.018)
    assert [low, high] == pytest.approx([0.018 - half, 0.018 + half])


def test_rows_alone_give_the_interval_of_a_share():
    """Sets and seeds that agree on every row: p +- t sqrt(p (1 - p) / (n - 1)). Contexts count, not their rows."""
    row = np.zeros(400)
    row[:200] = 1
    scores = np.broadcast_to(row, (3, 2, 400))
    mean, low, high = table.interval(scores)
    half = t.ppf(0.975, 399) * np.sqrt(0.5 * 0.5 / 399)
    assert mean == pytest.approx(0.5)
    assert [low, high] == pytest.approx([0.5 - half, 0.5 + half])
    fours = [str(i // 4) for i in range(400)]
    half = t.ppf(0.975, 99) * np.sqrt(0.5 * 0.5 / 99)
    assert table.interval(scores, fours)[2] == pytest.approx(0.5 + half)


@pytest.mark.parametrize("level", [0.95, 0.99])
@pytest.mark.parametrize("row_spread", [0.0, 0.2])
@pytest.mark.parametrize("set_spread", [0.0, 0.04, 0.2])
def test_an_interval_misses_as_seldom_as_it_says(set_spread, row_spread, level):
    """Sets and rows drawn again and again around a mean of 0; 600 draws, so within 4 standard errors."""
    rng, misses, draws = np.random.default_rng(0), 0, 600
    for _ in range(draws):
        rows, sets = rng.normal(0, row_spread, 100), rng.normal(0, set_spread, (5, 1, 1))
        _, low, high = table.interval(sets + rows + rng.normal(0, 0.25, (5, 1, 100)), level=level)
        misses += not low <= 0 <= high
    share = 1 - level
    assert misses / draws <= share + 4 * np.sqrt(share * (1 - share) / draws)


def test_a_set_counts_as_one_whatever_its_students():
    """The students of one set have its teachers in common, so more of them do not make the interval narrower."""
    values = np.random.default_rng(0).normal(0, 0.02, 5)
    two, many = (table.interval(np.broadcast_to(values[:, None, None], (5, n, 10))) for n in (2, 40))
    assert many[2] - many[1] == pytest.approx(two[2] - two[1])


class Scores:
    """(validation, minus nll) by name."""

    def __init__(self, scores):
        self.scores = scores

    def validation(self, name):
        return (self.scores[name], 0.0)


def test_w_is_chosen_on_the_other_sets():
    """Set 0 is by itself best with W = 0, but the others say W = 0.5; the others' best depends on set 0."""
    validation = {0.0: [0.99, 0.50, 0.50], 0.5: [0.60, 0.80, 0.80], 1.0: [0.60, 0.60, 0.60]}
    names = {w: [[f"{w} {s}"] for s in range(3)] for w in validation}
    known = Scores({f"{w} {s}": value for w, values in validation.items() for s, value in enumerate(values)})
    test = {w: np.full((3, 1, 4), w) for w in validation}
    scores, chosen = table.search_w(names, test, known)
    assert chosen == [0.5, 0.0, 0.0]
    assert scores[:, 0, 0].tolist() == chosen


def test_equal_values_of_w_choose_kd():
    names = {w: [["a"], ["b"]] for w in (0.0, 1.0)}
    test = {w: np.zeros((2, 1, 4)) for w in names}
    assert table.search_w(names, test, Scores({"a": 0.5, "b": 0.5}))[1] == [1.0, 1.0]


def test_a_training_is_made_once_by_processes_that_share_a_file(tmp_path):
    path = tmp_path / "trainings.jsonl"
    one, other = Known(path, math.inf), Known(path, math.inf)
    made: list[str] = []

    def making(name: str, wait: bool = False) -> dict[str, list[float]]:
        made.append(name)
        if name == "a":
            other.get("a", lambda: making("a, again"), wait)  # left to `one`, which is making it
        return {"test": [1.0]}

    one.get("a", lambda: making("a"), wait=True)
    other.get("a", lambda: making("a, later"), wait=True)
    assert made == ["a"]
    with path.open("a") as file:
        file.write('{"name": "b", "te')  # of a process that was killed
    other.get("b", lambda: making("b"), wait=True)
    one.read()
    assert made == ["a", "b"]
    assert [*one.lines] == ["a", "b"]
    assert len(path.read_text().splitlines()) == 2
