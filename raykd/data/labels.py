"""Gold labels of a classification, from the data's own form to numbers in the order of the model's classes.

If a split names its classes (texts, a ClassLabel, booleans, numbers that are names), they are matched by name, never by
position.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetInfo, Features, LargeList, List, Value

from raykd.common.errors import ConfigError
from raykd.config.schema import DataConfig
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
_BOOLEANS = (("False", "True"), ("no", "yes"), ("0", "1"))  # the names of False and True
_NUMERAL = re.compile(r"[+-]?\d+(\.\d+)?")
_SHOWN = 5  # names in a message
LISTS = (List, LargeList)  # features of rows that hold a list


def match_names(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, int] | None:
    """Map each of their names to its index in ours; None if one of them is not in ours.

    Case is ignored, unless two names on one side differ only in case.
    """
    indices = {name: i for i, name in enumerate(ours)}
    if all(name in indices for name in theirs):
        return {name: indices[name] for name in theirs}
    folded = {name.casefold(): i for i, name in enumerate(ours)}
    distinct = {name.casefold() for name in theirs}
    if len(folded) < len(ours) or len(distinct) < len(set(theirs)) or not distinct <= folded.keys():
        return None
    return {name: folded[name.casefold()] for name in theirs}


def class_order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of our classes its index in theirs; None if theirs are not our names in some order."""
    indices = match_names(theirs, ours)
    if indices is None or len(theirs) != len(ours) or len(set(indices.values())) != len(ours):
        return None
    return tuple(int(i) for i in np.argsort([indices[name] for name in theirs]))


def are_numerals(names: Sequence[str]) -> bool:
    return all(_NUMERAL.fullmatch(name) for name in names)


def number_labels(raw: dict[str, Dataset], task: Task, data: DataConfig) -> dict[str, Dataset]:
    """The splits with class numbers as labels. Sets the task's class names, unless the user gave them."""
    for name, rows in raw.items():
        _check_lists(rows, task, data, name)
    listed, raw = raw, {name: one_label_per_row(rows, task) for name, rows in raw.items()}
    given = bool(task.label_names)
    for name, rows in raw.items():
        _check_type(rows, task, data, name)
    if not given:
        task.label_names = _own_names(raw["train"], task.label_column)
    numbered = {name: _numbered(name, raw, task, given) for name in raw}
    _check_classes(numbered["train"], task, data)
    return {name: _into_lists(numbered[name], raw[name], rows, task) for name, rows in listed.items()}


def one_label_per_row(rows: Dataset, task: Task) -> Dataset:
    """The rows; if each word has a label, a row for each label instead, without the other columns."""
    role = task.label_column
    if not task.word_columns or role not in rows.column_names:
        return rows
    feature = rows.features[role]
    column = rows.select_columns(role).with_format("arrow")[:][role]
    # A second column, because `remove_columns` of the only one would also remove the rows.
    features = Features({"index": Value("int64"), role: feature.feature})
    labels = pc.list_flatten(column)
    return Dataset(pa.table({"index": range(len(labels)), role: labels}), info=DatasetInfo(features=features))


def _check_lists(rows: Dataset, task: Task, data: DataConfig, split: str) -> None:
    """Check that every row has a list of labels, if each word has a label."""
    role = task.label_column
    if not task.word_columns or role not in rows.column_names:
        return
    column = data.columns.get(role, role)
    if not isinstance(feature := rows.features[role], LISTS):
        kind = getattr(feature, "dtype", type(feature).__name__)
        reason = f"in {split} it holds {kind}, not lists of labels"
        raise ConfigError(f"data.columns.{role}", column, reason, "Name a column that has a list of labels in each row")
    missing = rows.select_columns(role).with_format("arrow")[:][role].is_null().to_numpy()
    if missing.any():
        reason = f"{missing.sum()} rows (the first is row {missing.argmax()}) have no labels"
        raise ConfigError(f"data.{split}", None, reason, "Drop these rows, or use them as data.transfer")


def _into_lists(numbered: Dataset, single: Dataset, rows: Dataset, task: Task) -> Dataset:
    """The rows with their labels as numbers.

    numbered, single: a row for each label, with and without its number.
    """
    if single is rows or numbered is single:
        return numbered if single is rows else rows
    role = task.label_column
    ends = np.cumsum([len(labels) for labels in rows[role][:]])
    lists = [part.tolist() for part in np.split(np.asarray(numbered[role][:]), ends[:-1])]
    return rows.remove_columns(role).add_column(role, lists)


def _check_type(rows: Dataset, task: Task, data: DataConfig, split: str) -> None:
    """Check that every row has a label, which is a text, a whole number, a boolean or a ClassLabel."""
    role = task.label_column
    if role not in rows.column_names:  # transfer rows
        return
    values = rows[role][:]
    if None in values:
        reason = f"{values.count(None)} rows (the first is row {values.index(None)}) have no label"
        raise ConfigError(f"data.{split}", None, reason, "Drop these rows, or use them as data.transfer")
    feature = rows.features[role]
    kind = str(getattr(feature, "dtype", type(feature).__name__))
    if kind not in ("string", "large_string", "bool") and not re.fullmatch(r"u?int\d+", kind):
        reason = f"in {split} it holds {kind}, not classes"
        column = data.columns.get(role, role)
        raise ConfigError(f"data.columns.{role}", column, reason, "Name a column of whole numbers or of texts")


def _own_names(train: Dataset, role: str) -> tuple[str, ...]:
    """The data's class names: those of its ClassLabel, False and True, its sorted distinct texts, or its numbers."""
    feature, values = train.features[role], train.unique(role)
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    elif feature.dtype == "bool":
        names = _BOOLEANS[0]
    elif "int" in feature.dtype:
        names = tuple(map(str, range(max(values, default=-1) + 1)))
    else:
        names = tuple(sorted(values))
        if are_numerals(names):  # sorted as texts, 10 would precede 2
            names = tuple(sorted(names, key=float))
    if len(names) < 2:
        raise ConfigError(
            "data.train", ", ".join(names), "its rows have fewer than two classes", "Name every class in task.labels"
        )
    return names


def _numbered(split: str, raw: dict[str, Dataset], task: Task, given: bool) -> Dataset:
    rows, role = raw[split], task.label_column
    if role not in rows.column_names:
        return rows
    feature = rows.features[role]
    numbers: dict[Any, int] | None
    if isinstance(feature, ClassLabel):
        theirs = _indices(feature.names, raw, task, given)
        if theirs is None:
            raise _other_classes(split, feature.names, task)
        numbers = {i: theirs[name] for i, name in enumerate(feature.names)}
    elif feature.dtype == "bool":
        numbers = _of_booleans(split, task, given)
    elif "int" in feature.dtype:
        numbers = _of_numbers(split, raw, task, given)
    else:
        numbers = _indices(rows.unique(role), raw, task, given)
        if numbers is None:
            raise _unknown_text(split, rows.unique(role), task)
    if numbers is None or (feature.dtype != "bool" and all(numbers[value] == value for value in numbers)):
        return rows
    # A number without a name stays as it is: GLUE's hidden labels are -1, which `check_rows` rejects.
    return rows.remove_columns(role).add_column(role, [numbers.get(value, value) for value in rows[role][:]])


def _indices(theirs: Sequence[str], raw: dict[str, Dataset], task: Task, given: bool) -> dict[str, int] | None:
    """Map a split's names to class numbers. If task.labels shares no name with the data's ClassLabel, it renames it.

    If splits have their ClassLabels in different orders, task.labels renames the classes in the first split's order.
    """
    indices = match_names(theirs, task.label_names)
    if indices is not None or not given:
        return indices
    labelled = [rows.features[task.label_column] for rows in raw.values() if task.label_column in rows.column_names]
    old = next((feature.names for feature in labelled if isinstance(feature, ClassLabel)), None)
    if old is None or len(old) != len(task.label_names):
        return None
    shared = {name.casefold() for name in old} & {name.casefold() for name in task.label_names}
    return None if shared else match_names(theirs, old)


def _of_booleans(split: str, task: Task, given: bool) -> dict[Any, int]:
    for pair in _BOOLEANS:
        if indices := match_names(pair, task.label_names):
            return {False: indices[pair[0]], True: indices[pair[1]]}
    if not given or len(task.label_names) != 2:
        raise _nameless(split, "booleans", task)
    return {False: 0, True: 1}


def _of_numbers(split: str, raw: dict[str, Dataset], task: Task, given: bool) -> dict[Any, int] | None:
    """Map numbers to class numbers, if the classes have numbers as names. None: they are class numbers already."""
    role = task.label_column
    features = {name: rows.features[role] for name, rows in raw.items() if role in rows.column_names}
    # Of all splits, because a part of the numbers 1..5 could be both names and class numbers.
    plain = [n for n, f in features.items() if "int" in f.dtype and not isinstance(f, ClassLabel)]
    values = sorted({value for name in plain for value in raw[name].unique(role)})
    indices = match_names([str(value) for value in values], task.label_names)
    if indices is not None:
        return {value: indices[str(value)] for value in values}
    if not given and features["train"].dtype in ("string", "large_string"):
        raise _nameless(split, f"numbers ({', '.join(map(str, values[:_SHOWN]))})", task)
    return None


def _other_classes(split: str, theirs: Sequence[str], task: Task) -> ConfigError:
    return ConfigError(
        "task.labels",
        ", ".join(task.label_names),
        f"the classes of data.{split} are {some(theirs)}",
        "Use these names, in the order of the teachers' classes",
    )


def _unknown_text(split: str, theirs: Sequence[str], task: Task) -> ConfigError:
    unknown = next((value for value in theirs if match_names([value], task.label_names) is None), None)
    if unknown is None:  # each one alone is known, so two of them differ only in case
        folded = [value.casefold() for value in theirs]
        unknown = next(v for v in theirs if v not in task.label_names and folded.count(v.casefold()) > 1)
    reason = f"this label is not one of {some(task.label_names)}"
    return ConfigError(f"data.{split}", unknown, reason, "Name every class in task.labels")


def _nameless(split: str, kind: str, task: Task) -> ConfigError:
    reason = f"its labels are {kind}, but those of data.train are the names {some(task.label_names)}"
    hint = "Use one kind of label in all splits, or name the classes in task.labels in the order of the numbers"
    return ConfigError(f"data.{split}", kind, reason, hint)


def _check_classes(train: Dataset, task: Task, data: DataConfig) -> None:
    """Check that the training rows have more than one class; a slice of rows sorted by label can have only one."""
    present = set(train.unique(task.label_column))
    if not present <= set(range(len(task.label_names))):
        return  # `check_rows` names the row
    names = [task.label_names[i] for i in sorted(present)]
    if len(names) == 1:
        reason = f"all of its rows are of one class, {names[0]}"
        raise ConfigError("data.train", data.train, reason, "Shuffle the data, or take rows of every class")
    if names and (absent := [name for name in task.label_names if name not in names]):
        log.warning("data.train = %s: no row is of class %s, so it cannot be learnt", data.train, some(absent))


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN + 1 else ""
    return ", ".join(names[: _SHOWN if more else None]) + more
