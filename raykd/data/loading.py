"""The splits of an experiment: loaded, checked, and identified by content."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value

from raykd.common.errors import ConfigError
from raykd.common.hashing import DIGEST_BYTES, digest, fingerprint
from raykd.common.units import rows_that
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
from raykd.data.doubts import are_no_groups, contradictions, equal_rows, shared_groups, single_classes
from raykd.data.labels import number_labels
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
    groups: (N,), equal for rows that depend on each other, if `data.group` or an optional column of the task says so;
        see `groups_of`.
    notes: what is doubtful about it, a sentence each, which the report repeats.
    """

    name: str
    rows: Dataset
    ids: np.ndarray
    digest: str
    labelled: bool
    groups: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def groups_of(split: Split, task: Task) -> Sequence[str] | None:
    """(N,), equal for rows that depend on each other; None if none do, as far as that is known."""
    column = task.group_column
    if split.groups is not None or column not in task.columns:
        return split.groups
    return list(split.rows.with_format(None)[column])


def load_splits(config: Config, task: Task) -> dict[str, Split]:
    """Load, rename and check every split. Sets the task's label names if the data knows them.

    Raises ConfigError for invalid data. Logs a warning if two splits have equal rows.
    """
    with quiet_datasets():
        raw = {name: load_rows(config.data, name) for name in SPLITS if getattr(config.data, name)}
        check_disjoint(config.data)
        groups = {name: _groups(rows, config.data, name) for name, rows in raw.items()}
        notes = [*shared_groups(raw, config.data, task)]
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
    if config.data.group is None and task.group_column in task.optional_columns:
        splits = _with_contexts(splits, task)
    notes += [*equal_rows(splits), *contradictions(splits, task), *single_classes(splits, task)]
    for _, text in notes:
        log.warning("%s", text)
    return {name: replace(split, notes=tuple(t for of, t in notes if of == name)) for name, split in splits.items()}


def _groups(rows: Dataset, data: DataConfig, name: str) -> tuple[str, ...] | None:
    """The values of the column `data.group`, as texts; None without one, which transfer rows need not have."""
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
        raise ConfigError("data.group", data.group, reason, "Give every row one; a row of its own has one of its own")
    return tuple(str(value) for value in values)


def _with_contexts(splits: dict[str, Split], task: Task) -> dict[str, Split]:
    """The splits with the values of the task's optional column as groups. A row without one is a group of its own."""
    column = task.group_column
    having = {name: split.rows[column][:] for name, split in splits.items() if column in split.rows.column_names}
    if are_no_groups(having.values(), task):
        return splits
    groups = {name: tuple(value or f"row {row}" for row, value in enumerate(of)) for name, of in having.items()}
    return {name: replace(split, groups=groups.get(name)) for name, split in splits.items()}


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
