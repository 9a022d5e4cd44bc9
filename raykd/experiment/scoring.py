"""Scores the teachers and their ensemble from their stored logits, without their actors."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raykd.common.output_files import RESULT
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.plan.job import best_scores
from raykd.plan.prepare import Prepared
from raykd.tasks import Evaluation
from raykd.tasks.generated import METRICS
from raykd.teachers.serving import ServedTeacher

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 256, 2**28


def stored_logits(prepared: Prepared, teachers: Sequence[ServedTeacher], split: str, store: LogitStore) -> StoredLogits:
    """Every teacher's logits of a split's rows, in the student's order."""
    members = [prepared.teachers[t.name].splits[split].open() for t in teachers]
    return StoredLogits(
        [TeacherLogits(store, t.key) for t in teachers],
        id_column(members[0], "row_id"),
        [id_column(rows, "input_hash") for rows in members],
        widths_differ=teachers[0].keep.form == "hidden",
    )


def parts_of(stored: StoredLogits) -> Iterator[range]:
    """Positions of consecutive rows whose logits are held at the same time: up to 256 rows, and up to 256 MB.

    A row that is larger is a part of its own.
    """
    start, teachers = 0, len(stored.sources)
    while start < len(stored):
        shapes = stored.shapes[start : start + _ROWS_AT_ONCE].astype(np.int64)
        # Rows are padded to the largest H and C of their batch. 2 bytes: fp16.
        held = np.arange(1, len(shapes) + 1) * np.maximum.accumulate(shapes, axis=0).prod(1) * 2 * teachers
        rows = max(1, int(np.searchsorted(held, _BYTES_AT_ONCE, side="right")))
        yield range(start, start + rows)
        start += rows


def score_teachers(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore
) -> list[dict[str, Evaluation]]:
    """Evaluations by split, of each teacher and, last, of the uniform ensemble (the mean of the logits)."""
    evaluations: list[dict[str, Evaluation]] = [{} for _ in range(len(teachers) + 1)]
    for split in ("validation", "test"):
        stored = stored_logits(prepared, teachers, split, store)
        encoded = [prepared.teachers[t.name].splits[split].open() for t in teachers]
        raw = prepared.splits[split].rows
        encoded.append(encoded[0])  # the ensemble's
        read = [rows.select_columns([*prepared.task.summary_columns]) for rows in encoded]
        summaries: list[list[Any]] = [[] for _ in evaluations]
        for positions in parts_of(stored):
            rows = [stored[[i]][:, 0] for i in positions]  # each (M, H_i, C_i)
            if prepared.task.predicts_tokens:
                each = _token_scores(
                    prepared, rows, encoded[0].select_columns(["labels"])[positions]["labels"], teachers, store
                )
            else:
                each = [[row[m] for row in rows] for m in range(len(teachers))]
                each.append([row.astype(np.float32).mean(0) for row in rows])
            for m, logits in enumerate(each):
                summaries[m] += prepared.task.summarize(logits, read[m][positions])
        for m, found in enumerate(evaluations):
            calibration = found["validation"].calibration if split == "test" else None
            found[split] = prepared.task.evaluate(summaries[m], encoded[m], raw, calibration)
    return evaluations


def _token_scores(
    prepared: Prepared,
    rows: Sequence[np.ndarray],
    labels: Sequence[Sequence[int]],
    teachers: Sequence[ServedTeacher],
    store: LogitStore,
) -> list[list[np.ndarray]]:
    """What a task over a vocabulary summarizes: (H_i, 6) of each row, by teacher and, last, of the ensemble."""
    from raykd.models.kept_logits import scores_of_ensemble  # imports torch

    task, first = prepared.task, prepared.student.splits["validation"].open()
    classes = int(task.shapes(first.select_columns([*task.shape_columns])[:1])[0, 1])
    return scores_of_ensemble(rows, labels, classes, teachers[0].keep, store, [t.key for t in teachers])


def generated_metrics(served: ServedTeacher) -> dict[str, float]:
    """The scores of what a teacher that was trained here has generated at the end of its training, on test.

    {} for one of several folds, whose models have written different texts.
    """
    folder = Path(served.models[0].pretrained or "")  # TRAINING/generation-1/model
    if len(served.models) > 1:
        return {}
    result = json.loads((folder.parents[1] / RESULT).read_text())
    test = best_scores(result)["test"]
    return {name: test[name] for name in METRICS if name in test}
