"""What is doubtful about a job's rows. All functions yield the name of a split and a sentence about it."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset

from raykd.common.hashing import DIGEST_BYTES
from raykd.common.units import counted
from raykd.config.schema import DataConfig
from raykd.data.groups import are_no_groups
from raykd.data.labels import one_label_per_row
from raykd.data.split import Split
from raykd.tasks.common import Task


def single_classes(splits: Mapping[str, Split], task: Task) -> Iterator[tuple[str, str]]:
    """Splits with a single class, which come from slicing data that are sorted by label."""
    if not task.named_classes:
        return
    for name, split in splits.items():
        if split.labelled and len(classes := one_label_per_row(split.rows, task).unique(task.label_column)) == 1:
            of = f"all {len(split.rows)} rows are of one class, {task.label_names[classes[0]]}"
            yield name, f"data.{name}: {of}. Shuffle the data, or take rows of every class"


def shared_groups(raw: Mapping[str, Dataset], data: DataConfig, task: Task) -> Iterator[tuple[str, str]]:
    """Groups of rows in two splits: a context that was seen in training makes its questions easier."""
    titled = task.article_column and all(task.article_column in rows.column_names for rows in raw.values())
    column = data.group or (task.article_column if titled else task.group_column and data.column(task.group_column))
    if column is None:
        return
    groups = {name: set(rows.unique(column)) - {None, ""} for name, rows in raw.items() if column in rows.column_names}
    if column not in (data.group, task.article_column) and are_no_groups(groups.values(), task):
        return
    by = column if data.group or not task.article_column else "article"
    for (a, first), (b, second) in combinations(groups.items(), 2):
        if common := len(first & second):
            shared = f"{counted(common, column)} {'is' if common == 1 else 'are'}"
            yield b, f"data: {shared} in both {a} and {b}. Split the data by {by}"


def equal_rows(splits: Mapping[str, Split]) -> Iterator[tuple[str, str]]:
    """Rows of a split that also occur in another, as in many public data sets."""
    for a, b in combinations(splits.values(), 2):
        if common := len(np.intersect1d(_as_keys(a.ids), _as_keys(b.ids))):
            rows = f"{counted(common, 'distinct row')} of {b.name} {'is' if common == 1 else 'are'}"
            yield b.name, f"data: {rows} also in {a.name} (equal content)"


def contradictions(splits: Mapping[str, Split], task: Task) -> Iterator[tuple[str, str]]:
    """Rows with the content of another row of their split and another label: no model can be right on both."""
    if not task.named_classes:  # values and answers can differ without a contradiction
        return
    for name, split in splits.items():
        if not split.labelled:
            continue
        _, content, count = np.unique(_as_keys(split.ids), return_inverse=True, return_counts=True)
        repeated = np.flatnonzero(count[content] > 1)
        labels: dict[int, list[Any]] = {}
        for one, label in zip(
            content[repeated].tolist(), split.rows.select(repeated)[task.label_column][:], strict=True
        ):
            # The order of several labels means nothing, that of a sentence's tags does.
            labels.setdefault(one, []).append(sorted(label) if task.problem_type and label else label)
        if found := sum(len(own) for own in labels.values() if any(label != own[0] for label in own)):
            rows = f"{found:,} of {len(split.rows):,} rows"
            yield name, f"data.{name}: {rows} have the same content as another row and a different label"


def _as_keys(ids: np.ndarray) -> np.ndarray:
    """(N,) byte strings from (N, 16) uint8."""
    return np.ascontiguousarray(ids).view(f"S{DIGEST_BYTES}").ravel()
