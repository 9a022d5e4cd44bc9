"""Tries a task of the user's own on random logits, because its scores are needed only after the first training."""

import math
from typing import Any

import numpy as np
from datasets import Dataset

from raykd.common.dotted import is_dotted
from raykd.common.errors import OwnCodeError
from raykd.config.schema import Config
from raykd.data.encoding import Encoded
from raykd.data.split import Split
from raykd.models.inputs import input_columns
from raykd.models.opened import OpenedModel
from raykd.plan.checked import check_once
from raykd.tasks import Task
from raykd.tasks.chance import chances

_KEY = "task.type"
_VERSION = 2  # increase it when a check is added
_ROWS = 1000  # of validation, most


def check_own_task(config: Config, task: Task, student: OpenedModel, split: Split, encoded: Encoded) -> None:
    """Raise OwnCodeError if a method of the user's own task fails, or returns another type than raykd's.

    split, encoded: the validation rows, raw and as encoded for the student.
    """
    if not is_dotted(config.task.type):
        return

    def check() -> None:
        raw, rows = _some(split.rows, encoded.open())
        task.collate(dict(input_columns(rows, task)[:2]), student.processor)
        if not task.predicts_tokens:
            _check_scores(task, raw, rows)
        chances(task, raw)

    identity = ["own task", _VERSION, config.task.type, config.task.code.digest, split.digest, encoded.digest]
    check_once(config.store, [*identity, student.processor_facts.digest, task.label_names], check)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:  # no number
        return False


def _check_scores(task: Task, raw: Dataset, rows: Dataset) -> None:
    """Score random logits of these rows."""
    shapes = task.shapes(rows.select_columns([*task.shape_columns])[:])
    rng = np.random.default_rng(0)
    logits: Any = [rng.normal(size=shape).astype(np.float16) for shape in shapes.tolist()]
    if len({row.shape for row in logits}) == 1:  # as in a run
        logits = np.stack(logits)
    summaries = task.summarize(logits, rows.select_columns([*task.summary_columns])[:])
    scored = task.evaluate(summaries, rows, raw)
    lacking = [name for name in task.metric_names if name not in {**scored.metrics, **task.unmeasurable(raw)}]
    if lacking:
        hint = "Add them, or remove them from metric_names"
        raise _error(task, f"its evaluate does not return the metrics {', '.join(lacking)}", hint)
    primary = task.primary_metric
    if primary in scored.metrics and not _is_finite(scored.metrics[primary]):  # models could not be ranked by it
        reason = f"its evaluate returns {primary} = {scored.metrics[primary]}"
        raise _error(task, reason, "Return a finite number for any logits, such as 0 where the metric is not defined")
    for name, count in (("scores", len(scored.scores)), ("predictions", len(scored.predictions))):
        if count != len(raw):
            raise _error(
                task, f"its evaluate returns {count} {name} for {len(raw)} rows", "Return one for each raw row"
            )
    predictions = task.predictions(logits, rows, raw, scored.calibration)
    if len(predictions) != len(raw):
        reason = f"its predictions returns {len(predictions)} dicts for {len(raw)} rows"
        raise _error(task, reason, "Return one for each raw row")


def _some(raw: Dataset, encoded: Dataset) -> tuple[Dataset, Dataset]:
    """At most _ROWS raw rows, evenly spread, and their encoded rows."""
    if len(raw) <= _ROWS:
        return raw, encoded
    chosen = np.linspace(0, len(raw) - 1, _ROWS).astype(int)
    example = np.asarray(encoded.select_columns("example").with_format("numpy")[:]["example"])
    at = np.flatnonzero(np.isin(example, chosen))
    own = np.searchsorted(chosen, example[at])
    return raw.select(chosen), encoded.select(at).remove_columns("example").add_column("example", own.tolist())


def _error(task: Task, reason: str, hint: str) -> OwnCodeError:
    return OwnCodeError(_KEY, task.settings.type, reason, hint)
