"""Labels as vectors of 0 and 1, with a place for each label."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from raykd.common.errors import ConfigError
from raykd.common.units import counted
from raykd.data.class_names import some
from raykd.tasks.common import Task


def from_multi_hot(raw: dict[str, Dataset], task: Task) -> dict[str, Dataset]:
    """The splits with lists of class numbers, if the labels of all rows are vectors of 0 and 1 of equal length.

    Such vectors cannot be lists of classes. In those a class occurs once, so the classes 0 and 1 make a list of one or
    two: lists that are all of two would say that every row has both classes.

    Raises ConfigError if one of them has another length.
    """
    role = task.label_column
    found = {name: rows[role][:] for name, rows in raw.items() if role in rows.column_names}
    every = [labels for lists in found.values() for labels in lists]
    lengths = Counter(map(len, every))
    if any(value not in (0, 1, "0", "1") for labels in every for value in labels):
        return raw
    texts = any(isinstance(value, str) for labels in every for value in labels)
    if texts or len(lengths) != 1 or (places := len(every[0])) < 2:
        _check_no_vector(found, lengths)
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


def _check_no_vector(found: Mapping[str, Sequence[Sequence[Any]]], lengths: Counter[int]) -> None:
    """Raise ConfigError if one of these lists has 0 or 1 twice: it is a vector, and no list of the classes 0 and 1.

    found: the lists of labels of each split, of 0 and 1 alone.
    lengths: of the lists, and how many have each.
    """
    rows = [(split, row, labels) for split, lists in found.items() for row, labels in enumerate(lists)]
    vector = next((one for one in rows if len({*one[2]}) < len(one[2])), None)
    if vector is None:
        return
    split, row, _ = vector
    reason, hint = "its vector of 0 and 1 is of texts", "Give vectors of numbers, or lists of the labels' names"
    if len(lengths) > 1:
        [(places, _)] = lengths.most_common(1)
        split, row, labels = next(other for other in rows if len(other[2]) != places)
        reason = f"it has {counted(len(labels), 'value')} of 0 and 1, and other rows have {places}"
        hint = "Give every row a value for each label, or the numbers of its labels"
    raise ConfigError(f"data.{split}", f"row {row}", reason, hint)
