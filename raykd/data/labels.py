"""Gold labels of a classification, from the data's own form to numbers in the order of the model's classes.

If a split names its classes (texts, a ClassLabel, booleans, numbers that are names), they are matched by name, never by
position.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetInfo, Features, LargeList, List, Value

from raykd.common.errors import ConfigError
from raykd.common.units import rows_that
from raykd.config.schema import DataConfig
from raykd.data.class_names import BOOLEANS, folded, is_plain_number, match_names, own_names, quoted, some
from raykd.data.multi_hot import from_multi_hot
from raykd.tasks.common import NUMBER, Task, numbers_of

log = logging.getLogger(__name__)
LISTS = (List, LargeList)  # features of rows that hold a list


def number_labels(raw: dict[str, Dataset], task: Task, data: DataConfig) -> dict[str, Dataset]:
    """The splits with class numbers as labels. Sets the task's class names, unless the user gave them."""
    for name, rows in raw.items():
        _check_lists(rows, task, data, name)
    raw = from_multi_hot(raw, task) if task.problem_type else raw
    raw = {name: _whole_numbers(rows, task.label_column) for name, rows in raw.items()}
    listed, raw = raw, {name: one_label_per_row(rows, task) for name, rows in raw.items()}
    given = bool(task.label_names)
    for name, rows in raw.items():
        _check_type(rows, task, data, name)
    if not given:
        task.label_names = own_names(raw, task.label_column)
    numbered = {name: _numbered(name, raw, task, given) for name in raw}
    _check_classes(numbered["train"], task, data)
    return {name: _into_lists(numbered[name], raw[name], rows, task) for name, rows in listed.items()}


def one_label_per_row(rows: Dataset, task: Task) -> Dataset:
    """The rows; if a row has a list of labels, a row for each label instead: the label and the row's position."""
    role = task.label_column
    if not task.label_lists or role not in rows.column_names:
        return rows
    feature = rows.features[role]
    column = rows.select_columns(role).with_format("arrow")[:][role]
    # Two columns also because `remove_columns` of the only one would remove the rows.
    features = Features({NUMBER: Value("int64"), role: feature.feature})
    labels = pc.list_flatten(column).combine_chunks()  # of no chunks, if all lists are empty
    numbers = np.repeat(np.arange(len(rows)), pc.list_value_length(column).to_numpy())
    return Dataset(pa.table({NUMBER: numbers, role: labels}), info=DatasetInfo(features=features))


def _check_lists(rows: Dataset, task: Task, data: DataConfig, split: str) -> None:
    """Check that every row has a list of labels, if the task needs one."""
    role = task.label_column
    if not task.label_lists or role not in rows.column_names:
        return
    column = data.column(role)
    if not isinstance(feature := rows.features[role], LISTS):
        kind = getattr(feature, "dtype", type(feature).__name__)
        kind = "texts" if kind in ("string", "large_string") else kind
        reason = f"in {split} it holds {kind}, not lists of labels"
        hint = (
            "Name a column that has a list of labels in each row, or a list of columns of 0 and 1, one for each label"
        )
        raise ConfigError(f"data.columns.{role}", column, reason, hint)
    missing = np.flatnonzero(rows.select_columns(role).with_format("arrow")[:][role].is_null().to_numpy())
    if len(missing):
        reason = f"{rows_that(missing, 'has', 'have')} no labels"
        raise ConfigError(
            f"data.{split}", getattr(data, split), reason, "Drop these rows, or use them as data.transfer"
        )


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


def _whole_numbers(rows: Dataset, role: str) -> Dataset:
    """The rows with labels such as 1.0 as whole numbers. pandas writes them if a row of the table has no label."""
    feature = rows.features.get(role)
    if not isinstance(feature, Value) or not feature.dtype.startswith("float"):
        return rows
    values = [value for value in rows.unique(role) if value is not None]
    return rows.cast_column(role, Value("int64")) if values and all(map(float.is_integer, values)) else rows


def _check_type(rows: Dataset, task: Task, data: DataConfig, split: str) -> None:
    """Check that every row has a label, which is a text, a whole number, a boolean or a ClassLabel."""
    role = task.label_column
    if role not in rows.column_names:  # transfer rows
        return
    values = rows[role][:]
    if not values:  # no row has a label, so their type is unknown
        return
    if None in values:
        reason = f"{rows_that(_rows_with(rows, [value is None for value in values]), 'has', 'have')} no label"
        raise ConfigError(
            f"data.{split}", getattr(data, split), reason, "Drop these rows, or use them as data.transfer"
        )
    feature = rows.features[role]
    kind = str(getattr(feature, "dtype", type(feature).__name__))
    if kind not in ("string", "large_string", "bool") and not re.fullmatch(r"u?int\d+", kind):
        reason = f"in {split} it holds {kind}, not classes"
        column = data.column(role)
        raise ConfigError(f"data.columns.{role}", column, reason, "Name a column of whole numbers or of texts")


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
            raise _unknown_text(split, rows, task)
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
    for pair in BOOLEANS:
        if indices := match_names(pair, task.label_names):
            return {False: indices[pair[0]], True: indices[pair[1]]}
    if not given or len(task.label_names) != 2:
        raise _nameless(split, "booleans", task)
    return {False: 0, True: 1}


def _of_numbers(split: str, raw: dict[str, Dataset], task: Task, given: bool) -> dict[Any, int] | None:
    """Map numbers to class numbers, if the classes have numbers as names. None: they are class numbers already."""
    role, names = task.label_column, task.label_names
    # Of all splits, because a part of the numbers 1..5 could be both names and class numbers.
    plain = [rows for rows in raw.values() if role in rows.column_names and is_plain_number(rows, role)]
    values = sorted({value for rows in plain for value in rows.unique(role)})
    indices = match_names([str(value) for value in values], names)
    if indices is not None:
        return {value: indices[str(value)] for value in values}
    if is_plain_number(raw["train"], role):
        if not given:
            return _of_own_numbers(split, raw[split], task)
        from_one = values[0] >= 1 and values[-1] == len(names)
        if from_one or (values == [-1, 1] and len(names) == 2):
            numbers = list(range(1, len(names) + 1)) if from_one else values
            if split == "train":
                log.info("data: the labels %s are the classes %s", some(list(map(str, numbers))), some(names))
            return {value: i for i, value in enumerate(numbers)}
    if not given and raw["train"].features[role].dtype in ("string", "large_string"):
        raise _nameless(split, f"numbers ({some(list(map(str, values)))})", task)
    return None


def _of_own_numbers(split: str, rows: Dataset, task: Task) -> dict[Any, int]:
    """Map numbers to class numbers, if the classes are the numbers of the training rows."""
    indices = {int(name): i for i, name in enumerate(task.label_names)}
    labels = rows[task.label_column][:]
    if unknown := [label for label in labels if label not in indices]:
        found = _rows_with(rows, [label not in indices for label in labels])
        reason = f"{rows_that(found, 'has', 'have')} a label other than {some(task.label_names)}"
        hint = "Name every class in task.labels, or use a split whose labels are public"
        raise ConfigError(f"data.{split}", unknown[0], reason, hint)
    return indices


def _rows_with(rows: Dataset, chosen: Sequence[bool]) -> list[int]:
    """The distinct positions, in the user's split, of the chosen ones of `one_label_per_row`'s rows."""
    return list(dict.fromkeys(number for number, is_one in zip(numbers_of(rows), chosen, strict=True) if is_one))


def _other_classes(split: str, theirs: Sequence[str], task: Task) -> ConfigError:
    return ConfigError(
        "task.labels",
        ", ".join(task.label_names),
        f"the classes of data.{split} are {some(theirs)}",
        "Use these names, in the order of the teachers' classes",
    )


def _unknown_text(split: str, rows: Dataset, task: Task) -> ConfigError:
    labels = rows[task.label_column][:]
    theirs = list(dict.fromkeys(labels))
    unknown = next((value for value in theirs if match_names([value], task.label_names) is None), None)
    if unknown is None:  # each one alone is known, so two of them differ only in case or spaces
        spellings = Counter(map(folded, theirs))
        unknown = next(v for v in theirs if v not in task.label_names and spellings[folded(v)] > 1)
    having = _rows_with(rows, [label == unknown for label in labels])
    reason = f"{rows_that(having, 'has', 'have')} this label, which is not "
    reason += f"one of {some(list(map(quoted, task.label_names)))}"
    hint = "Correct or remove such rows, or name every class in task.labels"
    if near := next((name for name in task.label_names if folded(name) == folded(unknown)), None):
        reason += f"; it differs from {quoted(near)} only in case or spaces"
        hint = "Spell each class in one way, or name every class in task.labels"
    return ConfigError(f"data.{split}", quoted(unknown), reason, hint)


def _nameless(split: str, kind: str, task: Task) -> ConfigError:
    reason = f"its labels are {kind}, but those of data.train are the names {some(task.label_names)}"
    hint = "Use one kind of label in all splits, or name the classes in task.labels in the order of the numbers"
    return ConfigError(f"data.{split}", kind, reason, hint)


def _check_classes(train: Dataset, task: Task, data: DataConfig) -> None:
    """Warn of classes without a training row. `load_splits` warns if all rows are of one class."""
    present = set(train.unique(task.label_column))
    absent = [name for i, name in enumerate(task.label_names) if i not in present]
    if len(present) > 1 and absent:
        log.warning("data.train = %s: no row is of class %s, so it cannot be learnt", data.train, some(absent))
