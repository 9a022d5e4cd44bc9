"""Trainings that have learnt nothing: their score is that of the best one answer for all examples, or worse."""

from raykd.common.metrics import higher_is_better, sign


def is_at_chance(metric: str, value: float, chance: float) -> bool:
    """Whether a value of the primary metric is at chance (`Task.chance`) or worse, up to rounding."""
    return higher_is_better(metric, value) <= higher_is_better(metric, chance) + 1e-6


def at_or_worse(metric: str) -> str:
    """ "at or below", or "at or above" if a lower value is better: the words before "chance"."""
    return "at or below" if sign(metric) > 0 else "at or above"
