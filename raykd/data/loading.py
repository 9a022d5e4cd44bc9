"""The splits of an experiment: loaded, checked, and identified by content."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from raykd.common.hashing import DIGEST_BYTES, digest, fingerprint
from raykd.config.schema import Config
from raykd.data.choices import join_columns, read_choices, single_columns
from raykd.data.columns import (
    check_inputs,
    check_same_columns,
    content_columns,
    make_columns,
    open_paths,
    rename_columns,
)
from raykd.data.doubts import contradictions, equal_rows, shared_groups, single_classes
from raykd.data.groups import named_groups, with_contexts
from raykd.data.labels import number_labels
from raykd.data.source import SPLITS, UNLABELLED, check_disjoint, load_rows, quiet_datasets
from raykd.data.split import Split
from raykd.data.values import read_values
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
_CHUNK = 1000  # rows that are hashed at a time


def load_splits(config: Config, task: Task) -> dict[str, Split]:
    """Load, rename and check every split. Sets the task's label names if the data knows them.

    What is doubtful (`raykd.data.doubts`) is logged as a warning and noted in the split. Raises ConfigError for invalid
    data.
    """
    with quiet_datasets():
        raw = {name: load_rows(config.data, name) for name in SPLITS if getattr(config.data, name)}
        check_disjoint(config.data)
        groups = {name: named_groups(rows, config.data, name) for name, rows in raw.items()}
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
        splits = with_contexts(splits, task)
    notes += [*equal_rows(splits), *contradictions(splits, task), *single_classes(splits, task)]
    for _, text in notes:
        log.warning("%s", text)
    return {name: replace(split, notes=tuple(t for of, t in notes if of == name)) for name, split in splits.items()}


def row_ids(rows: Dataset, task: Task) -> np.ndarray:
    """(N, 16) uint8: a hash of each raw row's inputs, independent of its label and position."""
    roles = content_columns(rows, task)
    content = rows.select_columns([*roles])
    pictures = {role: kind for role in roles if isinstance(kind := rows.features[role], Image)}
    for role in pictures:
        content = content.cast_column(role, Image(decode=False))
    modes = [kind.mode.encode() for kind in pictures.values() if kind.mode]  # of the same bytes they make other inputs
    joined = bytearray()
    # In chunks, because as Python objects the rows take several times as much memory.
    for batch in content.iter(_CHUNK):
        columns = [[_as_bytes(value) for value in batch[role]] for role in roles]
        joined += b"".join(digest(*parts, *modes) for parts in zip(*columns, strict=True))
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)


def _as_bytes(value: Any) -> bytes:
    """The bytes of a text, or of a picture that is not decoded."""
    if isinstance(value, dict):
        return value["bytes"] or Path(value["path"]).read_bytes()
    return str(value).encode()
