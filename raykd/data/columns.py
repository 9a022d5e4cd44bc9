"""The columns of raw rows: renamed to the task's names, and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from raykd.common.errors import ConfigError
from raykd.common.units import counted, rows_that
from raykd.config.schema import DataConfig
from raykd.data.class_names import some
from raykd.data.files import kind_of
from raykd.data.labels import LISTS
from raykd.tasks.common import Task


def rename_columns(rows: Dataset, data: DataConfig, task: Task, name: str, labelled: bool) -> Dataset:
    """The task's columns under the task's names, without the labels unless the rows are `labelled`.

    name: the split's, or what errors are to call the rows.
    """
    labels = [task.label_column] if labelled and task.label_column else []
    wanted = [*task.columns, *optional_columns(rows, data, task, name), *labels]
    for role in set(data.columns) - {*wanted, *task.optional_columns, task.label_column}:
        raise ConfigError(
            f"data.columns.{role}",
            data.columns[role],
            f"the task has no such column ({', '.join(wanted)})",
            "Remove or rename it",
        )
    kept: dict[str, str] = {}
    for role in wanted:
        column = data.column(role)
        if column in kept:
            reason = f"it is also the column of {kept[column]}"
            raise ConfigError(f"data.columns.{role}", column, reason, "Name a different column for each")
        if column in rows.column_names:
            kept[column] = role
        elif role not in (*task.optional_columns, *task.made_columns) or role in data.columns:
            hint = f"Set data.columns.{role} to one of them"
            if role == task.label_column and name == "train":
                hint += ", or use rows without labels as data.transfer"
                if rows.column_names == ["image"]:
                    hint = "Put each class into a folder of its own, or name a file with columns of paths and labels"
            if role == task.label_column and task.problem_type == "multi_label_classification":
                hint += ", or to a list of columns of 0 and 1, one for each label"
            reason = f"{name} has no such column; it has {some(rows.column_names)}"
            raise ConfigError(f"data.columns.{role}", column, reason, hint)
    rows = rows.select_columns(list(kept))
    return rows.rename_columns({c: r for c, r in kept.items() if c != r})


def optional_columns(rows: Dataset, data: DataConfig, task: Task, name: str) -> Sequence[str]:
    """The optional columns to use. Of alternatives only those of one group.

    It is the group that the user's names of columns are in, or else the first one that the data has.
    """
    if not task.column_choices:
        return task.optional_columns
    named = [group for group in task.column_choices if set(group) & data.columns.keys()]
    there = [g for g in named or task.column_choices if all(_is_there(rows, role, data, task) for role in g)]
    groups = there or named[-1:]  # of two groups the smaller one comes last
    if not groups:
        known = "; or ".join(" and ".join(group) for group in task.column_choices)
        reason = f"{name} has none of the columns that the task needs ({known}); it has {some(rows.column_names)}"
        raise ConfigError("data.columns", data.columns or "{}", reason, "Name them in data.columns")
    every = {role for group in task.column_choices for role in group}
    for role in (*groups[0], *(role for role in data.columns if role in every)):
        if (column := data.column(role)) not in rows.column_names:
            reason = f"{name} has no such column; it has {some(rows.column_names)}"
            if name == "transfer" and (why := task.transfer_needs.get(role)):
                reason += f". It is needed there too, because {why}"
            raise ConfigError(f"data.columns.{role}", column, reason, f"Set data.columns.{role} to one of them")
    return [*groups[0], *(role for role in task.optional_columns if role not in every)]


def _is_there(rows: Dataset, role: str, data: DataConfig, task: Task) -> bool:
    """Whether the rows have the column. One that only happens to be called like a column of JSON is not it."""
    if (column := data.column(role)) not in rows.column_names:
        return False
    feature = rows.features[column]
    whole = isinstance(feature, LISTS) and (
        isinstance(feature.feature, dict) or type(feature.feature).__name__ == "Json"
    )
    return role not in task.json_columns or whole or getattr(feature, "dtype", "") in ("string", "large_string")


def open_paths(rows: Dataset, data: DataConfig, task: Task, name: str) -> Dataset:
    """The rows with pictures where a column of the task's pictures holds their paths.

    A relative path starts at the folder of the data's file.
    """
    spec = getattr(data, name)
    base = Path(spec if kind_of(spec) else data.source)
    base = base if base.is_dir() else base.parent
    for role in task.columns if task.processor == "image_processor" else ():
        if getattr(rows.features[role], "dtype", "") not in ("string", "large_string"):
            continue
        paths = [path and str(base / path) for path in rows[role][:]]
        if lost := [row for row, path in enumerate(paths) if path and not Path(path).is_file()]:
            reason = f"in {name}, {rows_that(lost, 'names', 'name')} a file that does not exist: {paths[lost[0]]}"
            hint = f"Give paths relative to {base.resolve()}, or absolute ones"
            raise ConfigError(f"data.columns.{role}", data.column(role), reason, hint)
        rows = replaced(rows, role, paths).cast_column(role, Image())
    return rows


def replaced(rows: Dataset, column: str, values: list[Any]) -> Dataset:
    """The rows with other values in a column, which they need not have had."""
    if not (kept := [name for name in rows.column_names if name != column]):
        return Dataset.from_dict({column: values})  # without a column the rows would have no number
    return rows.select_columns(kept).add_column(column, values)


def make_columns(rows: Dataset, ids: np.ndarray, task: Task) -> Dataset:
    """The rows with a value made of their content where one of `made_columns` has none.

    ids: (N, 16) uint8 of the rows.
    """
    for role in task.made_columns:
        values = rows[role][:] if role in rows.column_names else [None] * len(rows)
        if any(value in (None, "") for value in values):
            made = [row.tobytes().hex()[:12] if v in (None, "") else str(v) for v, row in zip(values, ids, strict=True)]
            rows = replaced(rows, role, made)
    return rows


def content_columns(rows: Dataset, task: Task) -> tuple[str, ...]:
    """The columns that are the models' inputs and identify a row."""
    used = [role for role in task.optional_columns if role in rows.column_names and role not in task.scoring_columns]
    return task.identity_columns or (*task.columns, *used)


def check_same_columns(raw: dict[str, Dataset], data: DataConfig, task: Task) -> None:
    """Raise ConfigError if only some splits have an optional column."""
    for role in (role for role in task.optional_columns if role not in task.scoring_columns):
        having = [name for name, rows in raw.items() if role in rows.column_names]
        if having and (lacking := [name for name in raw if name not in having]):
            key, column = f"data.columns.{role}", data.column(role)
            reason = f"{', '.join(having)} has this column, but {', '.join(lacking)} does not"
            raise ConfigError(key, column, reason, "Add it to every split, or remove it from all")


def check_inputs(rows: Dataset, data: DataConfig, task: Task, name: str) -> None:
    """Raise ConfigError if a column does not hold text or pictures, as the task needs, or has empty rows."""
    pictures = task.processor == "image_processor"
    for role in content_columns(rows, task):
        feature = rows.features[role]
        key, column = f"data.columns.{role}", data.column(role)
        if role in task.json_columns:
            continue
        if role in task.message_columns:
            _check_messages(rows, role, key, column, name)
            continue
        words = role in task.word_columns
        value = feature.feature if words and isinstance(feature, LISTS) else feature
        fits = isinstance(feature, Image) if pictures else getattr(value, "dtype", "") in ("string", "large_string")
        fits = fits and words == isinstance(feature, LISTS)
        if not fits:
            kind = getattr(feature, "dtype", None) or type(feature).__name__
            wanted = (
                "pictures (datasets' Image)"
                if pictures
                else ("lists of texts" if task.choice_column else "lists of words")
                if words
                else "text"
            )
            raise ConfigError(key, column, f"in {name} it holds {kind}, not {wanted}", f"Name a column of {wanted}")
        missing = rows.select_columns(role).with_format("arrow")[:][role].is_null().to_numpy()
        if missing.any():
            empty = np.flatnonzero(missing)
            reason = f"in {name} it is empty in {counted(len(empty), 'row')}, first in row {empty[0]}"
            if name == "transfer" and (why := task.transfer_needs.get(role)):
                reason += f", and {why}"
            raise ConfigError(key, column, reason, "Fix or drop these rows")


def _check_messages(rows: Dataset, role: str, key: str, column: str, name: str) -> None:
    """Raise ConfigError unless every row is a list of messages, each with texts as role and content.

    A message that calls tools needs no content. Where messages have different fields, `datasets` reads each as JSON.
    """
    hint = "Name a column such as [{role: user, content: ...}, ...]"
    feature = rows.features[role]
    parts = feature.feature if isinstance(feature, LISTS) else {}
    texts = ("string", "large_string")
    fits = isinstance(parts, dict) and all(getattr(parts.get(n), "dtype", "") in texts for n in ("role", "content"))
    if not fits and type(parts).__name__ != "Json":
        reason = f"in {name} it holds no lists of messages, each with a role and a content"
        raise ConfigError(key, column, reason, hint)
    for row, messages in enumerate(rows[role][:]):
        for message in messages or ():
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                reason = f"in {name} a message of row {row} has no role"
                raise ConfigError(key, column, reason, "Fix or drop these rows")
            content = message.get("content")
            if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
                what = "no content" if content is None else f"a content that is no text ({str(content)[:40]})"
                reason = f"in {name} a message of row {row} has {what}"
                raise ConfigError(key, column, reason, "Fix or drop these rows")
