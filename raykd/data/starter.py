"""`raykd init`: a first job for somebody's own data, as YAML with comments."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Image

from raykd.common.errors import ConfigError, HubError
from raykd.config.schema import DataConfig
from raykd.data.files import kind_of
from raykd.data.labels import LISTS
from raykd.data.source import load_rows, quiet_datasets

_MOST_CLASSES = 20  # different labels, or the share of rows below; more are no classes
_MOST_SHARE = 0.05
_LABELS = ("label", "labels", "class", "target", "category", "sentiment")  # usual names of a column of labels
_VALUES = ("label", "score", "similarity", "rating", "target", "value")  # words in the names of columns of values
_CHOICES = ("choices", "options", "endings")  # usual names of a multiple choice's columns
_QUESTIONS = ("question", "question_stem", "sent2", "goal", "ctx", "sentence", "premise")
_ANSWERS = ("label", "answer", "answerKey", "answer_idx", "cop")
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
_TEACHER = {
    "text-classification": "google/electra-base-discriminator",
    "multi-label-classification": "google/electra-base-discriminator",
    "regression": "google/electra-base-discriminator",
    "multiple-choice": "google/electra-base-discriminator",
    "token-classification": "google/electra-base-discriminator",
    "question-answering": "google/electra-base-discriminator",
    "image-classification": "google/vit-base-patch16-224-in21k",
}
_STUDENT = {name: "google/electra-small-discriminator" for name in _TEACHER}
_TEACHER["text-generation"] = "HuggingFaceTB/SmolLM2-360M"
_STUDENT["text-generation"] = "HuggingFaceTB/SmolLM2-135M"
_STUDENT["image-classification"] = "facebook/deit-tiny-patch16-224"
_METHODS = ("finetune", "label_smoothing", "annealing", "weighted", "born_again")

_JOB = """\
# Written by `raykd init`. `raykd check {path}` says what would run; `raykd check --help` explains every key.
name: {name}
task: {{type: {task}{tolerance}}}
data:
  source: {source}{columns}
  train: {train}
  validation: {validation}   # chooses checkpoints, thresholds and settings
  test: {test}   # only ever scored
  # transfer: more.parquet            # unlabelled rows that the teachers label
teachers: # any hub id or folder; `recipe` fine-tunes it here, a fine-tuned checkpoint goes without
{teachers}
student:
  model: {student}
  seed: [0, 1, 2]
training: {{epochs: 3, batch_size: 32, learning_rate: 5.0e-5}} # shared by teachers, baseline and student
method: {{type: kd, alpha: 0.5{temperature}}} # or {methods}
search: # what `raykd sweep` tries
  trials: 8 # of each method
  seeds: 3 # on which the best setting of each method is trained again
  space:
    method.type: [kd, annealing, weighted, born_again]
    method.alpha: {{uniform: [0.3, 1.0]}}{temperatures}
    method.W: {{uniform: [0, 1]}}
"""


@dataclass(frozen=True)
class Found:
    """What the data looks like.

    task: the task's name.
    columns: the task's names of the columns, to the data's own.
    splits: what `data.train`, `data.validation` and `data.test` should be.
    rows: of the training split.
    tolerance: of a regression, a tenth of its labels' range.
    """

    task: str
    columns: dict[str, str | list[str]]
    splits: dict[str, str]
    rows: int
    tolerance: float | None = None


def write_job(source: str, path: Path, teachers: Sequence[str], student: str | None) -> Found:
    """Write a job for this data. Raises ConfigError for data that cannot be read, and if the file exists.

    source: a file, a folder or a hub id.
    teachers: hub ids or folders; empty: three times the same, with different seeds.
    student: None: a small one.
    """
    if path.exists():
        raise ConfigError("--job", path, "this file exists", "Name another one")
    found = look_at(source)
    chat = "-Instruct" if "messages" in found.columns else ""  # the models of this name have a chat template
    models = teachers or [_TEACHER[found.task] + chat] * 3
    lines = [f"  - {{name: {chr(97 + i)}, model: {m}, recipe: {{seed: {i + 1}}}}}" for i, m in enumerate(models)]
    renamed = {role: column for role, column in found.columns.items() if role != column}
    inside = ", ".join(f"{role}: {_written(column)}" for role, column in renamed.items())
    stem = Path(source).name.split(".")[0] or "job"
    values = found.tolerance is not None  # no classes, so no distributions over them
    text = _JOB.format(
        tolerance=f", tolerance: {found.tolerance:g}" if values else "",
        temperature="" if values else ", temperature: 2",
        methods=", ".join(name for name in _METHODS if not (values and name == "label_smoothing")),
        temperatures="" if values else "\n    method.temperature: {log_uniform: [1, 8]}",
        path=path,
        name="".join(c if c.isalnum() or c in "_-" else "_" for c in stem).lstrip("-") or "job",
        task=found.task,
        source=_quoted(source),
        columns=f"\n  columns: {{{inside}}}   # the task's name: the data's name" if renamed else "",
        teachers="\n".join(lines),
        student=student or _STUDENT[found.task] + chat,
        **found.splits,
    )
    path.write_text(text)
    return found


def look_at(source: str) -> Found:
    """Guess the task and the columns from a split's columns, and the splits from those that there are."""
    with quiet_datasets():
        splits = {name: rows for name in ("train", "validation", "test") if (rows := _rows(source, name)) is not None}
    if "train" not in splits:
        raise ConfigError("DATA", source, "it has no split named train", "Write the job by hand; see the README")
    train = splits["train"]
    task, columns = _task_of(train, source)
    tolerance = None
    if task == "regression":
        labels = [value for value in train[str(columns["label"])][:] if value is not None]
        tolerance = float(f"{(max(labels) - min(labels)) / 10:.1g}")
    return Found(task, columns, _splits(splits), len(train), tolerance)


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
    texts = [name for name in kinds if getattr(kinds[name], "dtype", "") in ("string", "large_string")]
    if len(lists) >= 2 and not texts:
        words = next((n for n in lists if getattr(kinds[n].feature, "dtype", "") == "string"), lists[0])
        tags = next(name for name in reversed(lists) if name != words)
        return "token-classification", {"tokens": words, "ner_tags": tags}
    if texts and len(lists) == 1 and "label" in lists[0].lower():
        longest = max(texts, key=lambda name: sum(len(text or "") for text in rows[:100][name]))
        return "multi-label-classification", {"text": longest, "labels": lists[0]}
    value = _value_column(rows)
    label = {"label": value} if value else _label(rows, [], source)
    kind = "regression" if value else "text-classification"
    texts = [name for name in texts if name not in label.values()]
    if not texts:
        shown = ", ".join(rows.column_names)
        raise ConfigError("DATA", source, f"none of its columns ({shown}) is a text or a picture", "See the README")
    if pair := next((pair for pair in _PAIRS if {*pair} <= {*texts}), None):
        return kind, {"text": pair[0], "text_pair": pair[1], **label}
    longest = max(texts, key=lambda name: sum(len(text or "") for text in rows[:100][name]))
    return kind, {"text": longest, **label}


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
    counts = {name: len(rows.unique(name)) for name in names if rows.features[name].dtype not in ("float32", "float64")}
    most = max(_MOST_CLASSES, _MOST_SHARE * len(rows))
    few = sorted((n for n in counts if 1 < counts[n] < len(rows) and counts[n] <= most), key=lambda n: counts[n])
    if not (chosen := [*classes, *usual, *few]):
        shown = ", ".join(rows.column_names)
        reason = f"none of its columns ({shown}) is known to hold labels or has from 2 to {most:.0f} different values"
        raise ConfigError("DATA", source, reason, "Rename the column of the labels to label")
    return {"label": chosen[0]}


def _written(column: str | list[str]) -> str:
    return _quoted(column) if isinstance(column, str) else f"[{', '.join(map(_quoted, column))}]"


def _quoted(text: str) -> str:
    """As YAML, quoted only if it must be."""
    plain = all(c.isalnum() or c in "_-./" for c in text) and text.lower() not in (
        "yes",
        "no",
        "on",
        "off",
        "true",
        "false",
    )
    return text if plain and not text[:1].isdigit() else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
