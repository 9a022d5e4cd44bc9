"""A split whose logits a test has all at once, scored as raykd scores it: batch by batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from raykd.tasks import Evaluation, Task


def evaluate(
    task: Task,
    logits: Sequence[np.ndarray],
    encoded: Dataset,
    raw: Dataset,
    calibration: dict[str, float] | None = None,
    batch: int = 3,
) -> Evaluation:
    rows = encoded.select_columns([*task.summary_columns])
    summaries: list[Any] = []
    for start in range(0, len(rows), batch):
        summaries += task.summarize(logits[start : start + batch], rows[start : start + batch])
    return task.evaluate(summaries, encoded, raw, calibration)
