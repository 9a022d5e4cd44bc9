"""A classification's gold labels, as the data has them, to numbers in the order of the model's classes.

Wherever a split names its classes (texts, a ClassLabel, booleans, numbers that are names), names decide, never places.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from raykd.common.errors import ConfigError
from raykd.config.schema import DataConfig
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
_BOOLEANS = (("False", "True"), ("no", "yes"), ("0", "1"))  # the names of False and True
_NUMERAL = re.compile(r"[+-]?\d+(\.\d+)?")
_SHOWN = 5  # names in a message


def match_names(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, int] | None:
    """Each of their names to its place among ours; None if one of them is not there.

    Names must be equal; upper and lower case count as equal only if no two names on either side differ in case alone.
    """
    places = {name: i for i, name in enumerate(ours)}
    if all(name in places for name in theirs):
        return {name: places[name] for name in theirs}
    folded = {name.casefold(): i for i, name in enumerate(ours)}
    distinct = {name.casefold() for name in theirs}
    if len(folded) < len(ours) or len(distinct) < len(set(theirs)) or not distinct <= folded.keys():
        return None
    return {name: folded[name.casefold()] for name in theirs}


def class_order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of our classes its place among theirs; None if theirs are not our names in some order."""
    found = match_names(theirs, ours)
    if found is None or len(theirs) != len(ours) or len(set(found.values())) != len(ours):
        return None
    return tuple(int(i) for i in np.argsort([found[name] for name in theirs]))


def are_numerals(names: Sequence[str]) -> bool:
    return all(_NUMERAL.fullmatch(name) for name in names)


def number_labels(raw: dict[str, Dataset], task: Task, data: DataConfig) -> dict[str, Dataset]:
    """The splits with class numbers as labels. Sets the task's class names, unless the user has given them."""
    given = bool(task.label_names)
    for name, rows in raw.items():
        _check_type(rows, task, data, name)
    if not given:
        task.label_names = _own_names(raw["train"], task.label_column)
    numbered = {name: _numbered(name, raw, task, given) for name in raw}
    _check_classes(numbered["train"], task, data)
    return numbered


def _check_type(rows: Dataset, task: Task, data: DataConfig, split: str) -> None:
    """A label is a text, a whole number, a boolean or a ClassLabel, and every row has one."""
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
    """The data's own class names: its ClassLabel's, False and True, its distinct texts in order, or its numbers."""
    feature, values = train.features[role], train.unique(role)
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    elif feature.dtype == "bool":
        names = _BOOLEANS[0]
    elif "int" in feature.dtype:
        names = tuple(map(str, range(max(values, default=-1) + 1)))
    else:
        names = tuple(sorted(values))
        if are_numerals(names):  # as texts, 10 would come before 2
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
        theirs = _places(feature.names, raw, task, given)
        if theirs is None:
            raise _other_classes(split, feature.names, task)
        numbers = {i: theirs[name] for i, name in enumerate(feature.names)}
    elif feature.dtype == "bool":
        numbers = _of_booleans(split, task, given)
    elif "int" in feature.dtype:
        numbers = _of_numbers(split, raw, task, given)
    else:
        numbers = _places(rows.unique(role), raw, task, given)
        if numbers is None:
            raise _unknown_text(split, rows.unique(role), task)
    if numbers is None or (feature.dtype != "bool" and all(numbers[value] == value for value in numbers)):
        return rows
    # A number without a name stays: GLUE's hidden labels are -1, which `check_rows` refuses.
    return rows.remove_columns(role).add_column(role, [numbers.get(value, value) for value in rows[role][:]])


def _places(theirs: Sequence[str], raw: dict[str, Dataset], task: Task, given: bool) -> dict[str, int] | None:
    """A split's names to class numbers. If task.labels shares no name with the data's ClassLabel, it renames it.

    Splits may have their ClassLabels in different orders: the first one's order is what task.labels renames.
    """
    found = match_names(theirs, task.label_names)
    if found is not None or not given:
        return found
    labelled = [rows.features[task.label_column] for rows in raw.values() if task.label_column in rows.column_names]
    old = next((feature.names for feature in labelled if isinstance(feature, ClassLabel)), None)
    if old is None or len(old) != len(task.label_names):
        return None
    shared = {name.casefold() for name in old} & {name.casefold() for name in task.label_names}
    return None if shared else match_names(theirs, old)


def _of_booleans(split: str, task: Task, given: bool) -> dict[Any, int]:
    for pair in _BOOLEANS:
        if found := match_names(pair, task.label_names):
            return {False: found[pair[0]], True: found[pair[1]]}
    if not given or len(task.label_names) != 2:
        raise _nameless(split, "booleans", task)
    return {False: 0, True: 1}


def _of_numbers(split: str, raw: dict[str, Dataset], task: Task, given: bool) -> dict[Any, int] | None:
    """None: they are class numbers already. If the classes have numbers as names, these decide."""
    role = task.label_column
    features = {name: rows.features[role] for name, rows in raw.items() if role in rows.column_names}
    # Those of all splits: some of 1..5 alone could be names and places.
    plain = [n for n, f in features.items() if "int" in f.dtype and not isinstance(f, ClassLabel)]
    values = sorted({value for name in plain for value in raw[name].unique(role)})
    found = match_names([str(value) for value in values], task.label_names)
    if found is not None:
        return {value: found[str(value)] for value in values}
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
    if unknown is None:  # each alone is known, so two of them differ in case alone
        folded = [value.casefold() for value in theirs]
        unknown = next(v for v in theirs if v not in task.label_names and folded.count(v.casefold()) > 1)
    reason = f"this label is not one of {some(task.label_names)}"
    return ConfigError(f"data.{split}", unknown, reason, "Name every class in task.labels")


def _nameless(split: str, kind: str, task: Task) -> ConfigError:
    reason = f"its labels are {kind}, but those of data.train are the names {some(task.label_names)}"
    hint = "Use one kind of label in all splits, or name the classes in task.labels in the order of the numbers"
    return ConfigError(f"data.{split}", kind, reason, hint)


def _check_classes(train: Dataset, task: Task, data: DataConfig) -> None:
    """Of rows that are sorted by label, a slice may hold a single class: nothing can be learnt there."""
    present = set(train.unique(task.label_column))
    if not present <= set(range(len(task.label_names))):
        return  # `check_rows` names the row
    names = [task.label_names[i] for i in sorted(present)]
    if len(names) == 1:
        reason = f"all of its rows are of one class, {names[0]}"
        raise ConfigError("data.train", data.train, reason, "Shuffle the data, or take rows of every class")
    if names and (absent := [name for name in task.label_names if name not in names]):
        log.warning("data.train = %s: no row is of class %s, which cannot be learnt", data.train, some(absent))


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN + 1 else ""
    return ", ".join(names[: _SHOWN if more else None]) + more
