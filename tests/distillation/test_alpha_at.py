import pytest

from raykd.distillation import alpha_at


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("constant", 0.0, 0.8),
        ("constant", 1.0, 0.8),
        ("linear", 0.0, 0.8),
        ("linear", 0.25, 0.6),
        ("linear", 1.0, 0.0),
        ("cosine", 0.0, 0.8),
        ("cosine", 1 / 3, 0.6),  # cos 60 degrees is 1/2
        ("cosine", 0.5, 0.4),
        ("cosine", 2 / 3, 0.2),
        ("cosine", 1.0, 0.0),
    ],
)
def test_schedules(schedule, progress, expected):
    assert alpha_at(progress, 0.8, schedule) == pytest.approx(expected, abs=1e-12)


def test_the_default_is_constant():
    assert alpha_at(0.9, 0.3) == 0.3


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ends_are_exact(schedule):
    assert alpha_at(0.0, 0.7, schedule) == 0.7
    assert alpha_at(1.0, 0.7, schedule) == 0.0  # exactly: only then is the KL not computed


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_floor_bounds_the_decay_only(schedule):
    assert alpha_at(1.0, 0.8, schedule, floor=0.1) == 0.1
    assert alpha_at(0.5, 0.8, schedule, floor=0.1) == pytest.approx(0.4)


def test_floor_does_not_move_a_constant():
    assert alpha_at(0.5, 0.2, "constant", floor=0.5) == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0.5), "progress = -0.1"),
        ((1.1, 0.5), "progress = 1.1"),
        ((float("nan"), 0.5), "progress = nan"),
        ((0.5, 1.5), "alpha = 1.5"),
        ((0.5, -0.5), "alpha = -0.5"),
        ((0.5, 0.5, "step"), "schedule = 'step'"),
        ((0.5, 0.5, "linear", 2.0), "floor = 2.0"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        alpha_at(*arguments)
