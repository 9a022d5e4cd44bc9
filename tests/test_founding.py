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


def test_with_few_sets_the_interval_is_that_of_a_mean():
    """Sets that differ, seeds and rows that do not: Student's interval of the mean of five numbers."""
    values = np.array([0.01, 0.03, -0.02, 0.02, 0.05])
    mean, low, high = table.interval(np.broadcast_to(values[:, None, None], (5, 4, 50)))
    half = t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
    assert mean == pytest.approx(0.018)
    assert [low, high] == pytest.approx([0.018 - half, 0.018 + half], abs=0.15 * half)


def test_rows_alone_give_the_interval_of_a_share():
    """Sets and seeds that agree on every row: p +- 1.96 sqrt(p (1 - p) / n)."""
    row = np.zeros(400)
    row[:200] = 1
    mean, low, high = table.interval(np.broadcast_to(row, (3, 2, 400)))
    half = 1.96 * np.sqrt(0.5 * 0.5 / 400)
    assert mean == pytest.approx(0.5)
    assert [low, high] == pytest.approx([0.5 - half, 0.5 + half], abs=0.1 * half)


def test_a_set_is_resampled_whole():
    """The students of one set have its teachers in common, so more of them do not make the interval narrower."""
    values = np.random.default_rng(0).normal(0, 0.02, 5)
    two, many = (table.interval(np.broadcast_to(values[:, None, None], (5, n, 10))) for n in (2, 40))
    assert many[2] - many[1] == pytest.approx(two[2] - two[1], rel=0.1)


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
