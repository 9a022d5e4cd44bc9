"""What a data set's columns look like: texts, pairs, labels, values, choices. For `raykd init`."""

import math
import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from datasets import ClassLabel, Dataset, Value

from raykd.common.errors import ConfigError
from raykd.data.labels import LISTS

_MOST_CLASSES = 20  # different labels, or the share of rows below; more are no classes
_MOST_SHARE = 0.05
_LABELS = ("label", "labels", "class", "target", "category", "sentiment")  # usual names of a column of labels
_VALUES = ("label", "score", "similarity", "rating", "target", "value")  # words in the names of columns of values
LIKENESS = ("score", "similar", "related")  # words in the names of values that say how alike two texts are
_CHOICES = ("choices", "options", "endings")  # usual names of a multiple choice's columns
_QUESTIONS = ("question", "question_stem", "sent2", "goal", "ctx", "sentence", "premise")
_ANSWERS = ("label", "answer", "answerKey", "answer_idx", "cop")
_WORDS = ("tokens", "words")  # usual names of a token classification's words
_TEXTS = ("string", "large_string")
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


def texts_of(rows: Dataset) -> list[str]:
    """The columns of texts."""
    kinds = rows.features
    return [name for name in kinds if getattr(kinds[name], "dtype", "") in _TEXTS]


def mean_words(rows: Dataset, name: str) -> float:
    """How many words the column's texts have in the mean, in the first rows."""
    texts = rows[:100][name]
    return sum(len((text or "").split()) for text in texts) / max(1, len(texts))


def inputs_of(rows: Dataset, texts: Sequence[str], alike: bool = False) -> dict[str, str]:
    """The longest text, or both if two are clearly a pair.

    alike: whether the labels say how alike two texts are. Then the only two texts are a pair if they are about as long.
    """
    by_name = {name.lower(): name for name in texts}
    known = [(by_name[a], by_name[b]) for a, b in _PAIRS if {a, b} <= by_name.keys()]
    sides = [pair for a, b in combinations(texts, 2) for pair in ((a, b), (b, a)) if _are_sides(*pair, texts)]
    if not sides and alike and len(texts) == 2:
        first, second = (max(1.0, mean_words(rows, name)) for name in texts)
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


def flags_of(rows: Dataset) -> list[str]:
    """The columns of 0 and 1 that could be labels of one row each: numbers, or else booleans, whichever are more."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for name, feature in rows.features.items():
        numbers = isinstance(feature, Value) and feature.dtype.startswith(("bool", "int", "uint", "float"))
        if numbers and {*rows.unique(name)} == {0, 1}:
            found[feature.dtype == "bool"].append(name)
    return max(found.values(), key=len)


def has_known_label(rows: Dataset) -> bool:
    """Whether a column is a ClassLabel, or is called as one of labels usually is."""
    return any(isinstance(kind, ClassLabel) or name.lower() in _LABELS for name, kind in rows.features.items())


def choices_of(rows: Dataset) -> dict[str, Any]:
    """The columns of a multiple choice by the task's names; {} if they do not look like one."""
    kinds = rows.features
    texts = [name for name, kind in kinds.items() if getattr(kind, "dtype", "") in _TEXTS]
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


def words_and_tags_of(rows: Dataset, lists: Sequence[str], with_texts: bool) -> dict[str, str]:
    """The columns of a token classification by the task's names; {} if they do not look like one.

    lists: the columns of lists.
    with_texts: whether there are also columns of texts. Then the lists must have the usual names or types and a tag for
        each word, because they could be a text's words and its labels.
    """
    inner = {name: rows.features[name].feature for name in lists}
    texts = [name for name in lists if getattr(inner[name], "dtype", "") in _TEXTS]
    named = [name for name in texts if name.lower() in _WORDS]
    if len(lists) < 2 or (with_texts and not named):
        return {}
    words = [*named, *texts, *lists][0]
    others = [name for name in lists if name != words]
    classes = [name for name in others if isinstance(inner[name], ClassLabel)]
    usual = classes or [name for name in others if name.lower().endswith(("tags", "labels"))]
    tags = (usual or others)[-1]  # CoNLL has parts of speech and chunks before the names
    counts = [[len(row or ()) for row in rows[:100][name]] for name in (words, tags)]
    if with_texts and not (usual and counts[0] == counts[1]):
        return {}
    return {"tokens": words, "ner_tags": tags}


def value_column(rows: Dataset) -> str | None:
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
        label_of(rows, fractions, "")
    except ConfigError:
        return fractions[0]
    return None


def label_of(rows: Dataset, taken: Sequence[str], source: str) -> dict[str, str]:
    """The column of the labels: one of that name, a ClassLabel, or the one with the fewest different values."""
    names = [name for name in rows.column_names if name not in taken and not isinstance(rows.features[name], LISTS)]
    classes = [name for name in names if isinstance(rows.features[name], ClassLabel)]
    usual = [name for name in names if name.lower() in _LABELS]
    if not (chosen := [*classes, *usual, *few_values(rows, names)]):
        shown, most = ", ".join(rows.column_names), _most(rows)
        reason = f"none of its columns ({shown}) is known to hold labels or has from 2 to {most:.0f} different values"
        hint = "Rename the column of the labels to label"
        if commas := [name for name in names if _has_decimal_commas(rows, name)]:
            hint = f"If the labels are the numbers in {', '.join(commas)}, write them with a decimal point"
        raise ConfigError("DATA", source, reason, hint)
    return {"label": chosen[0]}


def _has_decimal_commas(rows: Dataset, name: str) -> bool:
    """Whether a column holds texts such as "3,8", as spreadsheets write numbers in many languages."""
    if name not in texts_of(rows):
        return False
    values = [value for value in rows[name][:] if value]
    return any("," in value for value in values) and all(re.fullmatch(r"-?\d+(,\d+)?", value) for value in values)


def _most(rows: Dataset) -> float:
    """How many different values a column of labels can have."""
    return max(_MOST_CLASSES, _MOST_SHARE * len(rows))


def few_values(rows: Dataset, names: Sequence[str]) -> list[str]:
    """Those of the columns that have few enough different values to be labels, the fewest first."""
    kinds = {name: getattr(rows.features[name], "dtype", "") for name in names}
    kinds = {name: kind for name, kind in kinds.items() if kind not in ("", "float32", "float64")}
    counts = {name: len(rows.unique(name)) for name in kinds if isinstance(rows.features[name], (Value, ClassLabel))}
    few = [name for name in counts if 1 < counts[name] < len(rows) and counts[name] <= _most(rows)]
    return sorted(few, key=lambda name: counts[name])
