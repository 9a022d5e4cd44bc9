"""The splits of an experiment: loaded, checked, and identified by content."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from raykd.common.errors import ConfigError
from raykd.common.hashing import DIGEST_BYTES, digest, fingerprint
from raykd.common.units import counted, rows_that
from raykd.config.schema import Config, DataConfig
from raykd.data.choices import join_columns, read_choices, single_columns
from raykd.data.class_names import some
from raykd.data.columns import (
    check_inputs,
    check_same_columns,
    content_columns,
    make_columns,
    open_paths,
    rename_columns,
)
from raykd.data.labels import number_labels, one_label_per_row
from raykd.data.source import SPLITS, UNLABELLED, check_disjoint, load_rows, quiet_datasets
from raykd.data.values import read_values
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
_CHUNK = 1000  # rows that are hashed at a time


@dataclass(frozen=True)
class Split:
    """One split: raw rows under the task's column names.

    ids: (N, 16) uint8, a hash of each row's content without its label.
    digest: hex hash of the whole split, including labels and order.
    labelled: whether its labels are used; teachers label the rows of `data.transfer`.
    groups: (N,), equal for rows that depend on each other, if `data.group` says so; see `groups_of`.
    """

    name: str
    rows: Dataset
    ids: np.ndarray
    digest: str
    labelled: bool
    groups: tuple[str, ...] | None = None


def groups_of(split: Split, task: Task) -> Sequence[str] | None:
    """(N,), equal for rows that depend on each other; None if none do, as far as that is known."""
    if split.groups is not None or task.group_column not in split.rows.column_names:
        return split.groups
    return list(split.rows.with_format(None)[task.group_column])


def load_splits(config: Config, task: Task) -> dict[str, Split]:
    """Load, rename and check every split. Sets the task's label names if the data knows them.

    Raises ConfigError for invalid data. Logs a warning if two splits have equal rows.
    """
    with quiet_datasets():
        raw = {name: load_rows(config.data, name) for name in SPLITS if getattr(config.data, name)}
        check_disjoint(config.data)
        groups = {name: _groups(rows, config.data, name) for name, rows in raw.items()}
        warn_of_shared_articles(raw, config.data, task)
        raw = {name: join_columns(rows, config.data, task, name, name != UNLABELLED) for name, rows in raw.items()}
        data = single_columns(config.data)
        raw = {name: rename_columns(rows, data, task, name, name != UNLABELLED) for name, rows in raw.items()}
        raw = {name: open_paths(rows, data, task, name) for name, rows in raw.items()}
        check_same_columns(raw, data, task)
        for name, rows in raw.items():
            check_inputs(rows, data, task, name)
        if task.named_classes:
            raw = number_labels(raw, task, data)
        elif task.predicts_values:
            raw = read_values(raw, task, data)
        elif task.choice_column:
            raw = read_choices(raw, task, data)
        splits = {}
        for name, rows in raw.items():
            ids = row_ids(rows, task)
            rows = make_columns(rows, ids, task)
            labelled = name != UNLABELLED
            task.check_rows(rows, name, labelled)
            labels = rows[task.label_column][:] if labelled and task.label_column else []
            scoring = [role for role in task.scoring_columns if role in rows.column_names]
            others = [role for role in (*task.columns, *scoring) if role not in content_columns(rows, task)]
            other_columns = [rows[role][:] for role in others]
            identity = fingerprint([digest(ids.tobytes()).hex(), labels, *other_columns])
            splits[name] = Split(name, rows, ids, identity, labelled, groups[name])
    warn_of_equal_rows(splits)
    warn_of_contradictions(splits, task)
    warn_of_single_classes(splits, task)
    return splits


def _groups(rows: Dataset, data: DataConfig, name: str) -> tuple[str, ...] | None:
    """The values of the column `data.group`, as texts; None without one, which transfer rows need not have."""
    if data.group is None or (name == UNLABELLED and data.group not in rows.column_names):
        return None
    if data.group not in rows.column_names:
        reason = f"{name} has no such column; it has {some(rows.column_names)}"
        raise ConfigError("data.group", data.group, reason, "Name one of them, or remove it")
    values = rows.with_format(None)[data.group][:]
    if lacking := [row for row, value in enumerate(values) if value is None]:
        reason = f"in {name}, {rows_that(lacking, 'has', 'have')} no value in this column"
        raise ConfigError("data.group", data.group, reason, "Give every row one; a row of its own has one of its own")
    return tuple(str(value) for value in values)


def warn_of_single_classes(splits: dict[str, Split], task: Task) -> None:
    """Warn of splits with a single class, which come from slicing data that are sorted by label."""
    if not task.named_classes:
        return
    for name, split in splits.items():
        if split.labelled and len(classes := one_label_per_row(split.rows, task).unique(task.label_column)) == 1:
            label = task.label_names[classes[0]]
            message = "data.%s: all %d rows are of one class, %s. Shuffle the data, or take rows of every class"
            log.warning(message, name, len(split.rows), label)


def warn_of_shared_articles(raw: dict[str, Dataset], data: DataConfig, task: Task) -> None:
    """Warn if two splits share groups of rows, because a context seen in training makes its questions easier."""
    titled = task.article_column and all(task.article_column in rows.column_names for rows in raw.values())
    column = data.group or (task.article_column if titled else task.group_column and data.column(task.group_column))
    if column is None:
        return
    groups = {name: set(rows.unique(column)) for name, rows in raw.items() if column in rows.column_names}
    for (a, first), (b, second) in combinations(groups.items(), 2):
        if common := len(first & second):
            shared = f"{counted(common, column)} {'is' if common == 1 else 'are'}"
            by = data.group or "article"
            log.warning("data: %s in both %s and %s. Split the data by %s", shared, a, b, by)


def warn_of_equal_rows(splits: dict[str, Split]) -> dict[tuple[str, str], int]:
    """Log how many rows of a split also occur in another, as in many public data sets.

    Returns these numbers of distinct rows, by the two splits' names.
    """
    counts = {}
    for a, b in combinations(splits.values(), 2):
        common = len(np.intersect1d(_as_keys(a.ids), _as_keys(b.ids)))
        if common:
            counts[a.name, b.name] = common
            rows = f"{counted(common, 'distinct row')} of {b.name} {'is' if common == 1 else 'are'}"
            log.warning("data: %s also in %s (equal content)", rows, a.name)
    return counts


def warn_of_contradictions(splits: dict[str, Split], task: Task) -> None:
    """Warn of rows with the content of another row of their split and another label: no model can be right on both."""
    if not task.named_classes:  # values and answers can differ without a contradiction
        return
    for split in (split for split in splits.values() if split.labelled):
        _, content, count = np.unique(_as_keys(split.ids), return_inverse=True, return_counts=True)
        repeated = np.flatnonzero(count[content] > 1)
        labels: dict[int, list[Any]] = {}
        for one, label in zip(
            content[repeated].tolist(), split.rows.select(repeated)[task.label_column][:], strict=True
        ):
            labels.setdefault(one, []).append(sorted(label) if task.label_lists and label else label)
        found = sum(len(own) for own in labels.values() if any(label != own[0] for label in own))
        if found:
            rows = f"{found:,} of {len(split.rows):,} rows"
            log.warning("data.%s: %s have the content of another row and another label", split.name, rows)


def _as_keys(ids: np.ndarray) -> np.ndarray:
    """(N,) byte strings from (N, 16) uint8."""
    return np.ascontiguousarray(ids).view(f"S{DIGEST_BYTES}").ravel()


def row_ids(rows: Dataset, task: Task) -> np.ndarray:
    """(N, 16) uint8: a hash of each raw row's inputs, independent of its label and position."""
    roles = content_columns(rows, task)
    content = rows.select_columns([*roles])
    for role in roles:
        if isinstance(rows.features[role], Image):
            content = content.cast_column(role, Image(decode=False))
    joined = bytearray()
    # In chunks, because as Python objects the rows take several times as much memory.
    for batch in content.iter(_CHUNK):
        columns = [[_as_bytes(value) for value in batch[role]] for role in roles]
        joined += b"".join(digest(*parts) for parts in zip(*columns, strict=True))
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)


def _as_bytes(value: Any) -> bytes:
    """The bytes of a text, or of a picture that is not decoded."""
    if isinstance(value, dict):
        return value["bytes"] or Path(value["path"]).read_bytes()
    return str(value).encode()
