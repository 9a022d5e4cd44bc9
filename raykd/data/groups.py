"""Rows that depend on each other: of one value of `data.group`, or of the task's context."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from datasets import ClassLabel, Dataset, Value

from raykd.common.errors import ConfigError
from raykd.common.units import rows_that
from raykd.config.schema import DataConfig
from raykd.data.class_names import some
from raykd.data.source import UNLABELLED
from raykd.data.split import Split
from raykd.tasks.common import Task


def groups_of(split: Split, task: Task) -> Sequence[str] | None:
    """(N,), equal for rows that depend on each other; None if none do, as far as that is known."""
    column = task.group_column
    if split.groups is not None or column not in task.columns:
        return split.groups
    return list(split.rows.with_format(None)[column])


def grouped_by(split: Split, task: Task, column: str | None) -> str:
    """The name of the column whose equal values mark the rows that `groups_of` puts together; "" if there are none.

    column: `data.group`.
    """
    there = split.groups is not None or task.group_column in task.columns
    return (column or str(task.group_column)) if there else ""


def named_groups(rows: Dataset, data: DataConfig, name: str) -> tuple[str, ...] | None:
    """(N,) the values of the column `data.group`, as texts; None without one.

    Transfer rows need not have the column. Raises ConfigError if it is missing, holds lists, or lacks a value.
    """
    if data.group is None or (name == UNLABELLED and data.group not in rows.column_names):
        return None
    if data.group not in rows.column_names:
        reason = f"{name} has no such column; it has {some(rows.column_names)}"
        raise ConfigError("data.group", data.group, reason, "Name one of them, or remove it")
    if not isinstance(rows.features[data.group], Value | ClassLabel):
        reason = f"in {name} it holds {type(rows.features[data.group]).__name__}, not a text or a number"
        raise ConfigError("data.group", data.group, reason, "Name a column with one value in each row")
    values = rows.with_format(None)[data.group][:]
    if lacking := [row for row, value in enumerate(values) if value is None or value == ""]:
        reason = f"in {name}, {rows_that(lacking, 'has', 'have')} no value in this column"
        hint = "Give every row a value; one of its own to a row that depends on no other"
        raise ConfigError("data.group", data.group, reason, hint)
    return tuple(str(value) for value in values)


def with_contexts(splits: dict[str, Split], task: Task) -> dict[str, Split]:
    """The splits with the values of the task's optional column as groups. A row without one is a group of its own."""
    column = task.group_column
    having = {name: split.rows[column][:] for name, split in splits.items() if column in split.rows.column_names}
    if are_no_groups(having.values(), task):
        return splits
    groups = {name: tuple(value or f"row {row}" for row, value in enumerate(of)) for name, of in having.items()}
    return {name: replace(split, groups=groups.get(name)) for name, split in splits.items()}


def are_no_groups(values: Iterable[Collection[str]], task: Task) -> bool:
    """Whether the task's optional column is empty, or one introduction to all rows. values: of each split."""
    return task.group_column in task.optional_columns and len(set().union(*values) - {""}) < 2
