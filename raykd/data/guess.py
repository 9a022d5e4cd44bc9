"""What a data set looks like: its task, the columns for it, and the splits. For `raykd init`."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from datasets import ClassLabel, Dataset, Image, Value

from raykd.common.errors import ConfigError, HubError
from raykd.config.schema import DataConfig, TaskConfig
from raykd.data.columns import optional_columns
from raykd.data.files import kind_of
from raykd.data.labels import LISTS
from raykd.data.source import load_rows, quiet_datasets
from raykd.tasks import make_task

_MOST_CLASSES = 20  # different labels, or the share of rows below; more are no classes
_MOST_SHARE = 0.05
_LABELS = ("label", "labels", "class", "target", "category", "sentiment")  # usual names of a column of labels
_VALUES = ("label", "score", "similarity", "rating", "target", "value")  # words in the names of columns of values
_ALIKE = ("score", "similar", "related")  # words in the names of values that say how alike two texts are
_CHOICES = ("choices", "options", "endings")  # usual names of a multiple choice's columns
_QUESTIONS = ("question", "question_stem", "sent2", "goal", "ctx", "sentence", "premise")
_ANSWERS = ("label", "answer", "answerKey", "answer_idx", "cop")
_PAIRS = (
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("text", "text_pair"),
)
# How the names of a pair end or begin.
_SIDES = (("1", "2"), ("0", "1"), ("a", "b"), ("left", "right"), ("first", "second"))


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
        return "text-generation", {}
    if {"question", "context", "answers"} <= set(kinds):
        return "question-answering", {}
    if choices := _choices(rows):
        return "multiple-choice", choices
    if images := [name for name, kind in kinds.items() if isinstance(kind, Image)]:
        return "image-classification", {"image": images[0], **_label(rows, images, source)}
    texts = _texts(rows)
    if len(lists) >= 2 and not texts:
        words = next((n for n in lists if getattr(kinds[n].feature, "dtype", "") == "string"), lists[0])
        tags = next(name for name in reversed(lists) if name != words)
        return "token-classification", {"tokens": words, "ner_tags": tags}
    if texts and len(lists) == 1 and "label" in lists[0].lower():
        return "multi-label-classification", {**_inputs(rows, texts), "labels": lists[0]}
    if texts == rows.column_names and len(texts) == 1:
        return "text-generation", {"text": texts[0]}
    value = _value_column(rows)
    if not value and texts and len(flags := _flags(rows)) > 1 and not _known_label(rows):
        return "multi-label-classification", {**_inputs(rows, texts), "labels": flags}
    label = {"label": value} if value else _label(rows, [], source)
    kind = "regression" if value else "text-classification"
    texts = [name for name in texts if name not in label.values()]
    if not texts:
        shown = ", ".join(rows.column_names)
        raise ConfigError("DATA", source, f"none of its columns ({shown}) is a text or a picture", "See the README")
    alike = bool(value) and any(word in str(value).lower() for word in _ALIKE)
    return kind, {**_inputs(rows, texts, alike), **label}


def _texts(rows: Dataset) -> list[str]:
    """The columns of texts."""
    kinds = rows.features
    return [name for name in kinds if getattr(kinds[name], "dtype", "") in ("string", "large_string")]


def _words(rows: Dataset, name: str) -> float:
    """How many words the column's texts have in the mean, in the first rows."""
    texts = rows[:100][name]
    return sum(len((text or "").split()) for text in texts) / max(1, len(texts))


def _inputs(rows: Dataset, texts: Sequence[str], alike: bool = False) -> dict[str, str]:
    """The longest text, or both if two are clearly a pair.

    alike: whether the labels say how alike two texts are. Then the only two texts are a pair if they are about as long.
    """
    by_name = {name.lower(): name for name in texts}
    known = [(by_name[a], by_name[b]) for a, b in _PAIRS if {a, b} <= by_name.keys()]
    sides = [pair for a, b in combinations(texts, 2) for pair in ((a, b), (b, a)) if _are_sides(*pair, texts)]
    if not sides and alike and len(texts) == 2:
        first, second = (max(1.0, _words(rows, name)) for name in texts)
        sides = [(texts[0], texts[1])] if 0.5 <= first / second <= 2 else []
    if known or len(sides) == 1:
        return dict(zip(("text", "text_pair"), (known or sides)[0], strict=True))
    return {"text": max(texts, key=lambda name: sum(len(text or "") for text in rows[:100][name]))}


def _are_sides(first: str, second: str, names: Sequence[str]) -> bool:
    """Whether these are names such as sentence1 and sentence2, text_a and text_b, left_text and right_text.

    names: of all texts. Of text1, text2 and text3, no two are a pair.
    """
    one, two = first.lower(), second.lower()
    if any(name not in (first, second) and name[:-1].lower() == one[:-1] for name in names):
        return False
    return any(
        (one.endswith(a) and two.endswith(b) and one.removesuffix(a) == two.removesuffix(b))
        or (one.startswith(a) and two.startswith(b) and one.removeprefix(a) == two.removeprefix(b))
        for a, b in _SIDES
    )


def _flags(rows: Dataset) -> list[str]:
    """The columns of 0 and 1 that could be labels of one row each: numbers, or else booleans, whichever are more."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for name, feature in rows.features.items():
        numbers = isinstance(feature, Value) and feature.dtype.startswith(("bool", "int", "uint", "float"))
        if numbers and {*rows.unique(name)} == {0, 1}:
            found[feature.dtype == "bool"].append(name)
    return max(found.values(), key=len)


def _known_label(rows: Dataset) -> bool:
    """Whether a column is a ClassLabel, or is called as one of labels usually is."""
    return any(isinstance(kind, ClassLabel) or name.lower() in _LABELS for name, kind in rows.features.items())


def _unused(rows: Dataset, task: str, columns: Mapping[str, Any]) -> list[str]:
    """The columns that a job with these would not use."""
    kind, data = make_task(TaskConfig(type=task)), DataConfig(source="rows", columns=dict(columns))
    roles = [*kind.columns, *optional_columns(rows, data, kind, "train"), kind.label_column]
    named = [columns.get(role, role) for role in roles]
    used = {name for one in named for name in ([one] if isinstance(one, str) else one)}
    return [name for name in rows.column_names if name not in used]


def _uses(rows: Dataset, task: str, columns: Mapping[str, Any], unused: Sequence[str]) -> Iterator[str]:
    """How to use columns that are not used: lines such as "for another label, set data.columns.label to topic"."""
    of_texts = "text_pair" in make_task(TaskConfig(type=task)).optional_columns
    texts = [name for name in _texts(rows) if name in unused and _words(rows, name) > 1]
    if of_texts and texts and "text_pair" not in columns:
        yield f"for a second text in each row, set data.columns.text_pair to {written(texts[0])}"
    label = columns.get("label")
    flags = [name for name in _flags(rows) if name == label or name in unused]
    if of_texts and len(flags) > 1 and label:
        inside = {role: column for role, column in columns.items() if role != "label"} | {"labels": flags}
        line = f"set task.type to multi-label-classification and data.columns to {mapping(inside)}"
        yield f"for several labels in each row, {line}"
    few = [name for name in _few(rows, unused) if name not in texts]
    if label and few and task != "regression":
        yield f"for another label, set data.columns.label to {written(few[0])}"


def _choices(rows: Dataset) -> dict[str, Any]:
    """The columns of a multiple choice by the task's names; {} if they do not look like one."""
    kinds = rows.features
    texts = [name for name, kind in kinds.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    label = next((name for name in _ANSWERS if name in kinds), None)
    listed: Any = next((name for name in _CHOICES if name in kinds and name not in texts), None)
    if listed is None:
        listed = [name for name in texts if re.fullmatch(r"(ending|choice|option|sol|answer|op)_?[0-9a-eA-E]", name)]
    question = next((name for name in _QUESTIONS if name in texts and name not in listed), None)
    if label is None or question is None or len(listed) < 2:
        return {}
    context = next((name for name in ("context", "article", "passage") if name in texts and name != question), None)
    found = {"question": question, "choices": listed, "label": label}
    return found | ({"context": context} if context else {})


def _value_column(rows: Dataset) -> str | None:
    """The column of a regression's labels: one with fractions and the name of labels or scores; None if there is none.

    Without such a name, it is the only column with fractions, if no other column looks like labels.
    """
    fractions = []
    for name, feature in rows.features.items():
        if getattr(feature, "dtype", "").startswith("float"):
            values = [value for value in rows[name][:] if value is not None and math.isfinite(value)]
            if any(value != int(value) for value in values):
                fractions.append(name)
    named = [name for name in fractions if any(word in name.lower() for word in _VALUES)]
    if any(isinstance(feature, ClassLabel) for feature in rows.features.values()):
        return None
    if any(name.lower() in _LABELS and name not in fractions for name in rows.column_names):
        return None
    if named or len(fractions) != 1:
        return named[0] if named else None
    try:
        _label(rows, fractions, "")
    except ConfigError:
        return fractions[0]
    return None


def _label(rows: Dataset, taken: Sequence[str], source: str) -> dict[str, str]:
    """The column of the labels: one of that name, a ClassLabel, or the one with the fewest different values."""
    names = [name for name in rows.column_names if name not in taken and not isinstance(rows.features[name], LISTS)]
    classes = [name for name in names if isinstance(rows.features[name], ClassLabel)]
    usual = [name for name in names if name.lower() in _LABELS]
    if not (chosen := [*classes, *usual, *_few(rows, names)]):
        shown, most = ", ".join(rows.column_names), _most(rows)
        reason = f"none of its columns ({shown}) is known to hold labels or has from 2 to {most:.0f} different values"
        raise ConfigError("DATA", source, reason, "Rename the column of the labels to label")
    return {"label": chosen[0]}


def _most(rows: Dataset) -> float:
    """How many different values a column of labels can have."""
    return max(_MOST_CLASSES, _MOST_SHARE * len(rows))


def _few(rows: Dataset, names: Sequence[str]) -> list[str]:
    """Those of the columns that have few enough different values to be labels, the fewest first."""
    kinds = {name: getattr(rows.features[name], "dtype", "") for name in names}
    kinds = {name: kind for name, kind in kinds.items() if kind not in ("", "float32", "float64")}
    counts = {name: len(rows.unique(name)) for name in kinds if isinstance(rows.features[name], (Value, ClassLabel))}
    few = [name for name in counts if 1 < counts[name] < len(rows) and counts[name] <= _most(rows)]
    return sorted(few, key=lambda name: counts[name])


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
