"""A given teacher whose classes do not fit the labels is found by its answers."""

import numpy as np
import pytest

from raykd.experiment.teacher_doubts import ClassMisfit, class_misfit, scale_misfit

NAMES = ("cat", "dog", "eel", "fox")


def answers(gold: np.ndarray, said: np.ndarray, names: tuple[str, ...] = NAMES) -> list[dict[str, str]]:
    return [{"label": names[y], "prediction": names[p]} for y, p in zip(gold, said, strict=True)]


def balanced(rows: int, classes: int, accuracy: float, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and what a teacher of this accuracy says that has class order[i] where ours is i."""
    rng = np.random.default_rng(0)
    gold = np.arange(rows) % classes
    said = np.where(rng.random(rows) < accuracy, gold, rng.integers(0, classes, rows))
    return gold, np.asarray(order)[said]


@pytest.mark.parametrize("order", [[1, 0], [1, 2, 3, 0], [3, 1, 2, 0]])
def test_order_that_would_fit(order):
    """[3, 1, 2, 0] is right on half of the rows, above chance; the order gives it away all the same."""
    names = NAMES[: len(order)]
    gold, said = balanced(120, len(order), 0.9, order)
    found = class_misfit(names, answers(gold, said, names))
    assert found is not None
    assert found.right == pytest.approx(np.mean(gold == said))
    assert found.order == tuple(names[order.index(i)] for i in range(len(order)))
    back = np.asarray([order.index(i) for i in range(len(order))])
    assert found.right_in_order == pytest.approx(np.mean(gold == back[said]))
    assert found.right_in_order > 0.85
    assert ", ".join(found.order) in found.warning("a")


@pytest.mark.parametrize("accuracy", [0.0, 0.2, 0.9])
def test_teachers_of_any_strength_whose_classes_fit(accuracy):
    assert class_misfit(NAMES, answers(*balanced(120, 4, accuracy, [0, 1, 2, 3]))) is None


def test_below_chance_in_any_order():
    """It always says the rarest class: its order is not what is wrong with it."""
    gold = np.repeat([0, 1, 2, 3], [60, 30, 20, 10])
    found = class_misfit(NAMES, answers(gold, np.full(120, 0)))
    assert found is None  # the commonest class each time: no better and no worse than chance
    found = class_misfit(NAMES, answers(gold, np.where(gold == 0, 3, 0)))
    assert found is not None
    assert (found.right, found.majority) == (0.0, 0.5)
    spread = np.tile([1, 2, 3], 40)
    gold = np.where(np.arange(120) < 84, 0, spread)
    found = class_misfit(("cat", "dog"), answers(np.minimum(gold, 1), np.arange(120) % 2, ("cat", "dog")))
    assert found == ClassMisfit(0.5, 0.7, ("cat", "dog"), 0.5)
    assert "No other order" in found.warning("a")


def test_few_rows_are_not_enough():
    gold = np.array([0, 1, 0, 1])
    assert class_misfit(("cat", "dog"), answers(gold, 1 - gold, ("cat", "dog"))) is None


def test_false_alarms_are_rare():
    """Of teachers that guess, about 1% are reported."""
    rng = np.random.default_rng(0)
    gold = np.arange(200) % 4
    found = [class_misfit(NAMES, answers(gold, rng.integers(0, 4, 200))) for _ in range(300)]
    assert sum(f is not None for f in found) <= 9


def test_of_a_task_that_names_no_labels_nothing_is_tested():
    """A task of the user's own."""
    assert class_misfit(NAMES, [{"prediction": NAMES[0]}] * 50) is None
    assert class_misfit(NAMES, [{"prediction": 0, "label": 1}] * 50) is None
    assert scale_misfit([{"prediction": 0.5}, {"prediction": 1.5}]) == ""
