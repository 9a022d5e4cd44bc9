"""What a data set looks like: its task, the columns for it, and the splits. For `raykd init`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Image

from raykd.common.errors import ConfigError, HubError
from raykd.config.schema import DataConfig, TaskConfig
from raykd.data.column_kinds import (
    LIKENESS,
    choices_of,
    few_values,
    flags_of,
    has_known_label,
    inputs_of,
    label_of,
    mean_words,
    texts_of,
    value_column,
    words_and_tags_of,
)
from raykd.data.columns import optional_columns
from raykd.data.files import kind_of
from raykd.data.labels import LISTS
from raykd.data.source import load_rows, quiet_datasets
from raykd.tasks import make_task


@dataclass(frozen=True)
class Found:
    """What the data looks like.

    task: the task's name.
    columns: the task's names of the columns, to the data's own.
    splits: what `data.train`, `data.validation` and `data.test` should be.
    rows: of the training split.
    tolerance: of a regression, a tenth of its labels' range.
    unused: the columns of the training split that the job does not use.
    uses: how to use some of those, one line each.
    """

    task: str
    columns: dict[str, str | list[str]]
    splits: dict[str, str]
    rows: int
    tolerance: float | None = None
    unused: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()


def look_at(source: str) -> Found:
    """Guess the task and the columns from a split's columns, and the splits from those that there are."""
    with quiet_datasets():
        splits = {name: rows for name in ("train", "validation", "test") if (rows := _rows(source, name)) is not None}
    if "train" not in splits:
        raise ConfigError("DATA", source, "it has no split named train", "Write the job by hand; see the README")
    train = splits["train"]
    task, columns = _task_of(train, source)
    unused = _unused(train, task, columns)
    tolerance = None
    if task == "regression":
        labels = [value for value in train[str(columns["label"])][:] if value is not None]
        tolerance = float(f"{(max(labels) - min(labels)) / 10:.1g}")
    uses = tuple(_uses(train, task, columns, unused))
    return Found(task, columns, _splits(splits), len(train), tolerance, tuple(unused), uses)


def _rows(source: str, split: str) -> Dataset | None:
    """The rows of a split; None if there is no such split. Errors of the data itself are raised."""
    if split != "train" and (source.startswith("builtin:") or (os.path.isfile(source) and kind_of(source))):
        return None
    try:
        return load_rows(DataConfig(source=source, train=split), "train")
    except HubError:
        raise
    except ConfigError:
        if split == "train":
            raise
        return None


def _splits(splits: Mapping[str, Dataset]) -> dict[str, str]:
    """The three splits. A part of the training rows stands in for one that is missing."""
    if "validation" in splits and "test" in splits:
        return {name: name for name in ("train", "validation", "test")}
    if "validation" in splits or "test" in splits:
        other = "test" if "test" in splits else "validation"
        return {"train": "train[:90%]", "validation": "train[90%:]", "test": other}
    return {"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[90%:]"}


def _task_of(rows: Dataset, source: str) -> tuple[str, dict[str, Any]]:
    """The task, and its columns by the task's names."""
    kinds = rows.features
    lists = [name for name, kind in kinds.items() if isinstance(kind, LISTS)]
    if isinstance(kinds.get("messages"), LISTS):
        return "text-generation", {"messages": "messages"}
    if {"prompt", "completion"} <= set(kinds):
        return "text-generation", {"prompt": "prompt", "completion": "completion"}
    if {"question", "context", "answers"} <= set(kinds):
        return "question-answering", {"question": "question", "context": "context", "answers": "answers"}
    if choices := choices_of(rows):
        return "multiple-choice", choices
    if images := [name for name, kind in kinds.items() if isinstance(kind, Image)]:
        return "image-classification", {"image": images[0], **label_of(rows, images, source)}
    texts = texts_of(rows)
    if tagged := words_and_tags_of(rows, lists, bool(texts)):
        return "token-classification", tagged
    if texts and len(lists) == 1 and "label" in lists[0].lower():
        return "multi-label-classification", {**inputs_of(rows, texts), "labels": lists[0]}
    if texts == rows.column_names and len(texts) == 1:
        return "text-generation", {"text": texts[0]}
    value = value_column(rows)
    if not value and texts and len(flags := flags_of(rows)) > 1 and not has_known_label(rows):
        return "multi-label-classification", {**inputs_of(rows, texts), "labels": flags}
    label = {"label": value} if value else label_of(rows, [], source)
    kind = "regression" if value else "text-classification"
    texts = [name for name in texts if name not in label.values()]
    if not texts:
        shown = ", ".join(rows.column_names)
        raise ConfigError("DATA", source, f"none of its columns ({shown}) is a text or a picture", "See the README")
    alike = bool(value) and any(word in str(value).lower() for word in LIKENESS)
    return kind, {**inputs_of(rows, texts, alike), **label}


def _unused(rows: Dataset, task: str, columns: Mapping[str, Any]) -> list[str]:
    """The columns that a job with these would not use."""
    kind, data = make_task(TaskConfig(type=task)), DataConfig(source="rows", columns=dict(columns))
    roles = [*kind.columns, *optional_columns(rows, data, kind, "train"), kind.label_column]
    named = [columns.get(role, role) for role in roles]
    used = {name for one in named for name in ([one] if isinstance(one, str) else one)} | {kind.article_column}
    return [name for name in rows.column_names if name not in used]


def _uses(rows: Dataset, task: str, columns: Mapping[str, Any], unused: Sequence[str]) -> Iterator[str]:
    """How to use columns that are not used: lines such as "for another label, set data.columns.label to topic"."""
    of_texts = "text_pair" in make_task(TaskConfig(type=task)).optional_columns
    texts = [name for name in texts_of(rows) if name in unused and mean_words(rows, name) > 1]
    if of_texts and texts and "text_pair" not in columns:
        yield f"for a second text in each row, set data.columns.text_pair to {written(texts[0])}"
    label = columns.get("label")
    flags = [name for name in flags_of(rows) if name == label or name in unused]
    if of_texts and len(flags) > 1 and label:
        inside = {role: column for role, column in columns.items() if role != "label"} | {"labels": flags}
        line = f"set task.type to multi-label-classification and data.columns to {mapping(inside)}"
        yield f"for several labels in each row, {line}"
    few = [name for name in few_values(rows, unused) if name not in texts]
    if label and few and task != "regression":
        yield f"for another label, set data.columns.label to {written(few[0])}"


def mapping(columns: Mapping[str, str | list[str]]) -> str:
    """The data's names by the task's, as YAML."""
    return "{" + ", ".join(f"{role}: {written(column)}" for role, column in columns.items()) + "}"


def written(column: str | list[str]) -> str:
    """The name of a column, or of several, as YAML."""
    return quoted(column) if isinstance(column, str) else f"[{', '.join(map(quoted, column))}]"


def quoted(text: str) -> str:
    """As YAML, quoted only if it must be."""
    plain = all(c.isalnum() or c in "_-./" for c in text)
    plain = plain and text.lower() not in ("yes", "no", "on", "off", "true", "false", "y", "n", "null")
    plain = plain and (text[:1].isalpha() or text.startswith(("/", "./", "../", "_")))
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
