"""Names of classes: compared, shortened for the screen, and taken from the data where the user gives none."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import ClassLabel, Dataset

from raykd.common.errors import ConfigError
from raykd.common.units import counted
from raykd.tasks.common import NO_LABEL

log = logging.getLogger(__name__)
BOOLEANS = (("False", "True"), ("no", "yes"), ("0", "1"))  # the names of False and True
_NUMERAL = re.compile(r"[+-]?\d+(\.\d+)?")
_SHOWN = 5  # names in a message
_SHOWN_CHARACTERS = 300


def folded(name: str) -> str:
    """The name in small letters, with single spaces between its words."""
    return " ".join(name.split()).casefold()


def match_names(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, int] | None:
    """Map each of their names to its index in ours; None if one of them is not in ours.

    Case and additional spaces are ignored, unless two names on one side differ only in these.
    """
    indices = {name: i for i, name in enumerate(ours)}
    if all(name in indices for name in theirs):
        return {name: indices[name] for name in theirs}
    by_folded = {folded(name): i for i, name in enumerate(ours)}
    distinct = {folded(name) for name in theirs}
    if len(by_folded) < len(ours) or len(distinct) < len(set(theirs)) or not distinct <= by_folded.keys():
        return None
    return {name: by_folded[folded(name)] for name in theirs}


def class_order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of our classes its index in theirs; None if theirs are not our names in some order."""
    indices = match_names(theirs, ours)
    if indices is None or len(theirs) != len(ours) or len(set(indices.values())) != len(ours):
        return None
    return tuple(int(i) for i in np.argsort([indices[name] for name in theirs]))


def are_numerals(names: Sequence[str]) -> bool:
    return all(_NUMERAL.fullmatch(name) for name in names)


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN + 1 else ""
    return ", ".join(names[: _SHOWN if more else None]) + more


def listed(names: Sequence[str]) -> str:
    """The names, for the screen: all that fit into some lines."""
    ends = np.cumsum([len(name) + 2 for name in names])
    shown = max(1, int((ends <= _SHOWN_CHARACTERS).sum()))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if shown < len(names) else "")


def quoted(name: str) -> str:
    """The name, in quotation marks if spaces at its ends would not be seen otherwise."""
    return name if name == " ".join(name.split()) else f'"{name}"'


def own_names(raw: Mapping[str, Dataset], role: str) -> tuple[str, ...]:
    """The data's class names: those of its ClassLabel, False and True, its sorted distinct texts, or its numbers.

    raw: the splits, with the labels under the name `role`.

    Raises ConfigError if the training rows have fewer than two classes. Warns of names that are nearly equal.
    """
    train = raw["train"]
    feature, values = train.features[role], train.unique(role)
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    elif feature.dtype == "bool":
        names = BOOLEANS[0]
    elif "int" in feature.dtype:
        names = tuple(map(str, _numbers(raw, role)))
    else:
        names = tuple(sorted(values))
        if are_numerals(names):  # sorted as texts, 10 would precede 2
            names = tuple(sorted(names, key=float))
        _warn_of_similar(names, train, role)
    if len(names) < 2:
        hint = "Shuffle the data if they are sorted by label, or name every class in task.labels"
        raise ConfigError("data.train", ", ".join(names), "its rows have fewer than two classes", hint)
    return names


def is_plain_number(dataset: Dataset, role: str) -> bool:
    """Whether the labels are whole numbers without names."""
    feature = dataset.features[role]
    return "int" in feature.dtype and not isinstance(feature, ClassLabel)


def _numbers(raw: Mapping[str, Dataset], role: str) -> list[int]:
    """The distinct labels of the training rows, and those between them of which only other splits have rows.

    Labels of other splits below and above are no classes: hidden labels are -1, as in GLUE's test splits.
    """
    values = set(raw["train"].unique(role)) - {NO_LABEL}
    numbered = [rows for rows in raw.values() if role in rows.column_names and is_plain_number(rows, role)]
    others = {value for rows in numbered for value in rows.unique(role)}
    return sorted(values | {value for value in others if min(values, default=0) < value < max(values, default=0)})


def _warn_of_similar(names: Sequence[str], train: Dataset, role: str) -> None:
    """Warn of classes whose names differ only in case or spaces, which are often one class in several spellings."""
    times = Counter(map(folded, names))
    similar = sorted((name for name in names if times[folded(name)] > 1), key=folded)
    if similar:
        rows = Counter(train[role][:])
        spellings = [f"{quoted(name)} ({counted(rows[name], 'row')})" for name in similar]
        message = "data.train: these labels differ only in case or spaces, and count as different classes: %s"
        log.warning(message, some(spellings))
