"""Trainings that have learnt nothing: their score is that of the best one answer for all examples, or less."""

CHANCE = "raykd.chance."  # a command's tags: this and a split's name
AT_CHANCE = "raykd.at_chance"  # the tag of each model's run, "true" or "false": on test; of a trial's, on validation


def is_at_chance(value: float, chance: float) -> bool:
    """Whether a value of the primary metric is at or below chance (`Task.chance`), up to rounding."""
    return value <= chance + 1e-6
