"""Trainings that have learnt nothing: their scores are those of the best answer that ignores the inputs, or worse."""

from collections.abc import Mapping

from raykd.common.metrics import higher_is_better, sign
from raykd.tracking.tags import Tag


def is_at_chance(metrics: Mapping[str, float], chances: Mapping[str, float]) -> bool:
    """Whether every metric whose value at chance is known is at that value or worse, up to rounding.

    One that is better shows that something was learnt: a model that finds rare classes can have a lower accuracy than
    the answer "the most common class".
    """
    known = [name for name in chances if name in metrics]
    return bool(known) and all(
        higher_is_better(name, metrics[name]) <= higher_is_better(name, chances[name]) + 1e-6 for name in known
    )


def chance_tags(chance: Mapping[str, Mapping[str, float]], primary_metric: str) -> dict[str, str]:
    """The parent run's tags of what is known. chance: by split, then by metric."""
    return {
        Tag.CHANCE + split + ("" if name == primary_metric else f".{name}"): repr(value)
        for split, values in chance.items()
        for name, value in values.items()
    }


def chances_from(tags: Mapping[str, str], split: str, primary_metric: str) -> dict[str, float]:
    """By metric, from these tags; {} if nothing is known. An older raykd wrote that of the primary metric alone."""
    prefix = f"{Tag.CHANCE}{split}"
    found = {name.removeprefix(prefix): float(value) for name, value in tags.items() if name.startswith(prefix)}
    return {name[1:] or primary_metric: value for name, value in found.items() if name[:1] in ("", ".")}


def at_or_worse(metric: str) -> str:
    """ "at or below", or "at or above" if a lower value is better: the words before "chance"."""
    return "at or below" if sign(metric) > 0 else "at or above"
