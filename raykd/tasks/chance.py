"""The scores of models that have learnt nothing."""

from datasets import Dataset

from raykd.tasks.common import Task


def chances(task: Task, rows: Dataset) -> dict[str, float]:
    """By metric, the value of a model that ignores the inputs, on these raw rows; of the primary metric `Task.chance`.

    {} if it is not known, as where a task of the user's own has another primary metric than the task whose `chance` it
    inherits. Nor are other metrics' known of a task that inherits `other_chances` and has a `chance` of its own.
    """
    of_primary, of_others = _owner(task, "chance"), _owner(task, "other_chances")
    value = task.chance(rows) if getattr(of_primary, "primary_metric", "") == task.primary_metric else None
    if value is None:
        return {}
    return {task.primary_metric: float(value)} | (task.other_chances(rows) if issubclass(of_others, of_primary) else {})


def _owner(task: Task, method: str) -> type:
    """The class that the task has the method from."""
    return next(kind for kind in type(task).__mro__ if method in vars(kind))
