"""A classification's gold labels, as the data has them, to numbers in the order of the model's classes."""

from typing import Any

from datasets import ClassLabel, Dataset

from raykd.common.errors import ConfigError
from raykd.tasks.common import Task


def label_names(train: Dataset, role: str) -> tuple[str, ...]:
    """The data's own class names: its ClassLabel's, its distinct texts in their order, or its numbers."""
    feature = train.features[role]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    else:
        values = [value for value in train.unique(role) if value is not None]
        numbers = all(isinstance(value, int) for value in values)
        names = tuple(map(str, range(max(values, default=-1) + 1))) if numbers else tuple(sorted(map(str, values)))
    if len(names) < 2:
        raise ConfigError(
            "data.train", ", ".join(names), "its rows have fewer than two classes", "Name every class in task.labels"
        )
    return names


def number_labels(rows: Dataset, task: Task, name: str) -> Dataset:
    """The rows with a whole number as label, by name wherever the data names its classes."""
    role = task.label_column
    if role not in rows.column_names:  # transfer rows
        return rows
    feature, values = rows.features[role], rows[role][:]
    numbers: dict[Any, int]
    if None in values:
        reason = f"{values.count(None)} rows (the first is row {values.index(None)}) have no label"
        raise ConfigError(f"data.{name}", None, reason, "Drop these rows, or use them as data.transfer")
    if isinstance(feature, ClassLabel):
        numbers = _by_name(feature.names, task, name)
    elif feature.dtype in ("string", "large_string"):
        numbers = {label: i for i, label in enumerate(task.label_names)}
        for value in rows.unique(role):
            if value not in numbers:
                reason = f"this label is not one of {', '.join(task.label_names)}"
                raise ConfigError(f"data.{name}", value, reason, "Name every class in task.labels")
    elif feature.dtype == "bool":
        numbers = {False: 0, True: 1}
    elif "int" in feature.dtype:
        return rows
    else:
        reason = f"in {name} it holds {feature.dtype}, not classes"
        raise ConfigError(f"data.columns.{role}", role, reason, "Name a column of whole numbers or of texts")
    if feature.dtype != "bool" and all(numbers[value] == value for value in numbers):
        return rows
    return rows.remove_columns(role).add_column(role, [numbers.get(v, v) for v in values])


def _by_name(theirs: list[str], task: Task, name: str) -> dict[int, int]:
    """Number in the data to number in task.labels. Names that share nothing with the data's rename its classes."""
    ours = [label.lower() for label in task.label_names]
    found = [label.lower() for label in theirs]
    if not set(found) & set(ours):
        return {i: i for i in range(len(theirs))}
    if not set(found) <= set(ours):
        raise ConfigError(
            "task.labels",
            ", ".join(task.label_names),
            f"the classes of data.{name} are {', '.join(theirs)}",
            "Use these names, in the order of the teachers' classes",
        )
    return {i: ours.index(label) for i, label in enumerate(found)}
