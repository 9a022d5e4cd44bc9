"""Labels as vectors of 0 and 1, with a place for each label."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from raykd.common.errors import ConfigError
from raykd.common.units import counted
from raykd.data.class_names import are_numerals, some
from raykd.tasks.common import Task


def from_multi_hot(raw: dict[str, Dataset], task: Task) -> dict[str, Dataset]:
    """The splits with lists of class numbers, if the labels of all rows are vectors of 0 and 1 of equal length.

    Such vectors cannot be lists of classes. In those a class occurs once, so the classes 0 and 1 make a list of one or
    two: lists that are all of two would say that every row has both classes.

    Raises ConfigError for a row with the same number twice, which is no list of classes.
    """
    role = task.label_column
    found = {name: rows[role][:] for name, rows in raw.items() if role in rows.column_names}
    every = [labels for lists in found.values() for labels in lists]
    lengths = Counter(map(len, every))
    flags = not any(isinstance(value, str) or value not in (0, 1) for labels in every for value in labels)
    if not flags or len(lengths) != 1 or (places := len(every[0])) < 2:
        _check_repeats(found, lengths.most_common(1)[0][0] if flags and lengths else None)
        return raw
    if not task.label_names:
        task.label_names = tuple(map(str, range(places)))
    if places != len(task.label_names):
        reason = f"it has {len(task.label_names)} names, but the data's vectors of 0 and 1 have {places} places"
        raise ConfigError("task.labels", some(task.label_names), reason, "Name the label of every place, in order")
    numbers = {name: [np.flatnonzero(labels).tolist() for labels in lists] for name, lists in found.items()}
    kept = {name: rows.remove_columns(role) for name, rows in raw.items() if name in found}
    feature = List(Value("int64"))
    return raw | {name: rows.add_column(role, numbers[name], feature=feature) for name, rows in kept.items()}


def _check_repeats(found: Mapping[str, Sequence[Sequence[Any]]], places: int | None) -> None:
    """Raise ConfigError if a row has the same number twice. A name that occurs twice is still that class.

    found: the lists of labels of each split.
    places: how many values most rows have, if all values are 0 or 1; None: there are others.
    """
    rows = [(split, row, labels) for split, lists in found.items() for row, labels in enumerate(lists)]
    repeating = ((split, row) for split, row, labels in rows if _repeats_a_number(labels))
    if (first := next(repeating, None)) is None:
        return
    split, row = first
    reason, hint = "its list of labels has the same number twice", "Name each of a row's classes once"
    if places is not None:
        split, row, labels = next(other for other in rows if len(other[2]) != places)
        reason = f"it has {counted(len(labels), 'value')} of 0 and 1, and most rows have {places}"
        hint = "Give every row a value for each label, or the numbers of its labels"
    raise ConfigError(f"data.{split}", f"row {row}", reason, hint)


def _repeats_a_number(labels: Sequence[Any]) -> bool:
    if len(set(labels)) == len(labels):
        return False
    repeated = [value for value, count in Counter(labels).items() if count > 1 and value is not None]
    return any(not isinstance(value, str) or are_numerals([value]) for value in repeated)
