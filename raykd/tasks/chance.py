"""The scores of models that have learnt nothing."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from raykd.tasks.common import Task


def chances(task: Task, rows: Dataset) -> dict[str, float]:
    """By metric, what a model that ignores the inputs seldom exceeds on these raw rows: `Task.chance`, `other_chances`.

    {} if it is not known, as where a task of the user's own has another primary metric than the task whose `chance` it
    inherits. Nor are other metrics' known of a task that inherits `other_chances` and has a `chance` of its own.
    """
    kinds = type(task).__mro__
    of_primary, of_others = (_owner(kinds, method) for method in ("chance", "other_chances"))
    named_for_it = _owner(kinds[kinds.index(of_primary) :], "primary_metric")
    declared = vars(named_for_it)["primary_metric"] if named_for_it else task.primary_metric
    value = task.chance(rows) if declared == task.primary_metric or isinstance(declared, property) else None
    if value is None:
        return {}
    return {task.primary_metric: float(value)} | (task.other_chances(rows) if issubclass(of_others, of_primary) else {})


def _owner(kinds: Sequence[type], member: str) -> Any:
    """The first of the classes that defines the member; None if none does."""
    return next((kind for kind in kinds if member in vars(kind)), None)
