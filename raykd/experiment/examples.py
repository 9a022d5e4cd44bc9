"""The test examples that the report shows: a text cut to a line, or a small picture."""

import base64
import io
from collections.abc import Iterable
from typing import Any

from datasets import Dataset
from PIL.Image import Image

from raykd.reports.analysis import Analysis
from raykd.reports.details import details
from raykd.reports.read import EXAMPLES
from raykd.tasks import Task
from raykd.tasks.common import numbers_of
from raykd.tracking.recorder import Recorder

LONGEST, LARGEST = 160, 96  # characters of a text; pixels of a picture's longer side


def note_examples(recorder: Recorder, analysis: Analysis) -> None:
    """Give the analysis, and MLflow, the rows on which student and ensemble differ. MLflow has only their numbers."""
    found = details(analysis)
    if found is None or not found.differing:
        return
    rows = recorder.prepared.splits["test"].rows
    examples = shown_examples(recorder.prepared.task, rows, [row["id"] for row in found.differing])
    recorder.parent.artifact_json(examples, EXAMPLES)
    analysis.experiment.examples.clear()
    analysis.experiment.examples.update(examples)


def shown_examples(task: Task, rows: Dataset, ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """By id, which is the row's position in the user's split: its `text`, or its `picture` as PNG in base64."""
    names = [name for name in (*task.columns, *task.optional_columns) if name in rows.column_names]
    chosen, places = rows.select_columns(names), {number: place for place, number in enumerate(numbers_of(rows))}
    return {number: _shown(chosen[places[int(number)]].values()) for number in ids}


def _shown(values: Iterable[Any]) -> dict[str, str]:
    shown: dict[str, str] = {}
    texts = []
    for value in values:
        if isinstance(value, Image):
            small = value.copy()
            small.thumbnail((LARGEST, LARGEST))
            file = io.BytesIO()
            small.convert("RGB").save(file, "PNG")
            shown["picture"] = base64.b64encode(file.getvalue()).decode()
        elif value is not None:
            texts.append(" ".join(str(value).split()))
    if texts:
        room = LONGEST // len(texts)
        shown["text"] = " / ".join(text if len(text) <= room else f"{text[: room - 1].rstrip()}…" for text in texts)
    return shown
