"""The choices of multiple choice, and labels in several columns, from the data's own form."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, List, Value

from raykd.common.errors import ConfigError
from raykd.common.units import counted, rows_that
from raykd.config.schema import DataConfig
from raykd.data.class_names import some
from raykd.data.columns import replaced
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
_PUBLIC = "Correct or drop these rows, or use a split whose labels are public"


def single_columns(data: DataConfig) -> DataConfig:
    """The section without the columns that `join_columns` has joined under the task's own name."""
    columns = {role: column for role, column in data.columns.items() if isinstance(column, str)}
    return data if columns == data.columns else data.model_copy(update={"columns": columns})


def join_columns(rows: Dataset, data: DataConfig, task: Task, name: str, labelled: bool) -> Dataset:
    """The rows with one column of lists for what the user names several columns for.

    Choices become a list of texts, also if each is a text with a label. Labels of a multi-label classification become
    a list of the names of the columns that have a 1.

    If choices have labels (AI2 Reasoning Challenge, CommonsenseQA), the answer becomes the number of the choice.

    name: the split's, or what errors are to call the rows.
    labelled: whether there are labels to read.
    """
    several = task.label_column if task.problem_type == "multi_label_classification" else task.choice_column
    for role, columns in data.columns.items():
        if not isinstance(columns, str) and role != several:
            reason = "only the choices of multiple choice and the labels of multi-label classification can be several"
            raise ConfigError(f"data.columns.{role}", columns, reason, "Name one column")
    if several == task.label_column and not isinstance(columns := data.columns.get(several, several), str):
        return _labels_of_columns(rows, columns, task, name) if labelled else rows
    if task.choice_column is None:
        return rows
    role = task.choice_column
    columns = data.columns.get(role, role)
    if not isinstance(columns, str):
        return _from_columns(rows, columns, role, name)
    feature = rows.features.get(columns)
    inner = getattr(feature, "feature", feature)  # of a list; in datasets' own form it is a struct of lists
    if not isinstance(inner, Mapping) or "text" not in inner:
        return rows
    pairs = [_texts_and_names(value) for value in rows[columns][:]]
    joined = replaced(rows, columns, [texts for texts, _ in pairs])
    answer = data.column(task.label_column)
    if not labelled or answer not in rows.column_names or not all(names for _, names in pairs):
        return joined
    numbers = []
    for row, (key, (_, names)) in enumerate(zip(rows[answer][:], pairs, strict=True)):
        if key not in names:
            reason = f"row {row}: it is none of the labels of its choices ({some(list(map(str, names)))})"
            raise ConfigError(f"data.{name}", repr(key), reason, _PUBLIC)
        numbers.append(names.index(key))
    return replaced(joined, answer, numbers)


def _from_columns(rows: Dataset, columns: Sequence[str], role: str, split: str) -> Dataset:
    """A row can have fewer choices than there are columns: the last ones are empty."""
    for column in columns:
        if column not in rows.column_names:
            reason = f"{split} has no column {column}; it has {some(rows.column_names)}"
            raise ConfigError(f"data.columns.{role}", ", ".join(columns), reason, "Name columns that it has")
    choices = []
    for row in zip(*(rows[column][:] for column in columns), strict=True):
        texts = [text if text is None else str(text) for text in row]
        while texts and texts[-1] in (None, ""):
            texts.pop()
        choices.append(texts)
    kept = rows.select_columns([name for name in rows.column_names if name not in (*columns, role)])
    return kept.add_column(role, choices)


def _labels_of_columns(rows: Dataset, columns: Sequence[str], task: Task, split: str) -> Dataset:
    """The rows with a list of labels, from a column of 0 and 1 for each. The columns are the labels' names."""
    values = []
    for column in columns:
        if column not in rows.column_names:
            reason = f"{split} has no column {column}; it has {some(rows.column_names)}"
            raise ConfigError(f"data.columns.{task.label_column}", ", ".join(columns), reason, "Name columns it has")
        values.append(rows[column][:])
        if wrong := [row for row, value in enumerate(values[-1]) if value not in (0, 1)]:
            reason = f"in column {column}, {rows_that(wrong, 'has', 'have')} neither 0 nor 1"
            raise ConfigError(f"data.{split}", values[-1][wrong[0]], reason, _PUBLIC)
    task.label_names = task.label_names or tuple(columns)
    lists = [[name for name, has in zip(columns, row, strict=True) if has] for row in zip(*values, strict=True)]
    kept = rows.select_columns([name for name in rows.column_names if name not in (*columns, task.label_column)])
    return kept.add_column(task.label_column, lists, feature=List(Value("string")))


def _texts_and_names(value: Any) -> tuple[list[str], list[Any]]:
    """The choices' texts and their labels, from {text: [...], label: [...]} or [{text: ..., label: ...}, ...].

    [] if they have no labels.
    """
    if isinstance(value, Mapping):
        return list(value["text"]), list(value.get("label") or [])
    parts = value or []
    named = bool(parts) and all(part.get("label") is not None for part in parts)
    return [part["text"] for part in parts], [part["label"] for part in parts] if named else []


def read_choices(raw: dict[str, Dataset], task: Task, data: DataConfig) -> dict[str, Dataset]:
    """The splits with the number of the right choice, from 0, as labels.

    The label of a row is a number from 0 or from 1, a letter, or the text of the choice: the same for all rows.
    """
    assert task.choice_column is not None
    role, labels = task.label_column, dict[str, list[Any]]()
    choices = {name: rows[task.choice_column][:] for name, rows in raw.items()}
    for name, rows in raw.items():
        for row, texts in enumerate(choices[name]):
            if len(texts) < 2 or any(not text for text in texts):
                reason = f"row {row} has {counted(len(texts), 'choice')}"
                reason = f"{reason}, one of which is empty" if any(not text for text in texts) else reason
                raise ConfigError(
                    f"data.{name}", getattr(data, name), reason, "Give each row two choices or more, none of them empty"
                )
        if role in rows.column_names:
            labels[name] = [_whole(label) for label in rows[role][:]]
            if missing := [row for row, label in enumerate(labels[name]) if label is None]:
                reason = f"{rows_that(missing, 'has', 'have')} no label"
                hint = "Drop these rows, or use them as data.transfer"
                raise ConfigError(f"data.{name}", getattr(data, name), reason, hint)
    numbers, numeric_labels = _numbers(labels, choices)
    sizes = {name: [len(texts) for texts in choices[name]] for name in numbers}
    every = [pair for name in numbers for pair in zip(numbers[name], sizes[name], strict=True)]
    if every and numeric_labels and all(1 <= number <= size for number, size in every):
        if any(number == size for number, size in every):
            log.info("data: the labels count the choices from 1")
            numbers = {name: [number - 1 for number in found] for name, found in numbers.items()}
        else:
            log.warning(
                "data: the labels are taken to count the choices from 0, though no row has the label 0. "
                "If they count from 1, write them as letters or as the choices' texts"
            )
    for name, found in numbers.items():
        outside = [row for row, (n, size) in enumerate(zip(found, sizes[name], strict=True)) if not 0 <= n < size]
        if outside:
            first = outside[0]
            reason = f"{rows_that(outside, 'has', 'have')} a label that is none of the row's choices; row {first} has "
            reason += counted(sizes[name][first], "choice")
            raise ConfigError(f"data.{name}", labels[name][first], reason, _PUBLIC)
    return {name: replaced(rows, role, numbers[name]) if name in numbers else rows for name, rows in raw.items()}


def _numbers(labels: dict[str, list[Any]], choices: dict[str, list[list[str]]]) -> tuple[dict[str, list[int]], bool]:
    """Labels as numbers, and whether the data has numbers, which can count from 1."""
    every = [label for found in labels.values() for label in found]
    if all(isinstance(label, int) and not isinstance(label, bool) for label in every):
        return labels, True
    texts = {name: [str(label).strip() for label in found] for name, found in labels.items()}
    plain = [text for found in texts.values() for text in found]
    pairs = {name: list(zip(found, choices[name], strict=True)) for name, found in labels.items()}
    if all(theirs.count(label) == 1 for found in pairs.values() for label, theirs in found):
        return {name: [theirs.index(label) for label, theirs in found] for name, found in pairs.items()}, False
    if all(re.fullmatch(r"-?\d+", text) for text in plain):
        return {name: [int(text) for text in found] for name, found in texts.items()}, True
    if all(re.fullmatch(r"[A-Za-z]", text) for text in plain):
        return {name: [ord(text.upper()) - ord("A") for text in found] for name, found in texts.items()}, False
    name, row = next(
        (name, row)
        for name, found in pairs.items()
        for row, (label, theirs) in enumerate(found)
        if theirs.count(label) != 1
    )
    label, theirs = pairs[name][row]
    reason = f"row {row}: it is not one of its choices ({some(theirs)}), nor are all labels numbers or letters"
    raise ConfigError(f"data.{name}", repr(label), reason, _PUBLIC)


def _whole(label: Any) -> Any:
    """Labels such as 1.0 as whole numbers. pandas writes them if a row of the table has no label."""
    return int(label) if isinstance(label, float) and label.is_integer() else label
