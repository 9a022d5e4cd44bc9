"""Gold labels of a regression, from the data's own form to floats."""

import numpy as np
from datasets import Dataset, Value

from raykd.common.errors import ConfigError
from raykd.common.units import rows_that
from raykd.config.schema import DataConfig
from raykd.tasks.common import Task

# The store keeps a value in 16 bits, 11 of which are its digits: the steps between two are up to 1/1024 of it. They are
# at most a tenth of the labels' standard deviation.
_STEPS, _STEPS_PER_DEVIATION = 1024, 10
_LARGEST = 30_000  # fp16 ends at 65,504, and a model's value can be beyond those of the labels


def read_values(raw: dict[str, Dataset], task: Task, data: DataConfig) -> dict[str, Dataset]:
    """The splits with floats as labels. Raises ConfigError for what is no finite number."""
    role, found = task.label_column, {}
    for name, rows in raw.items():
        if role not in rows.column_names:  # transfer rows
            found[name] = rows
            continue
        values = _numbers(rows, task, data, name)
        if np.ptp(values) == 0:
            reason = f"all {len(values)} rows have the same label, {values[0]:g}, so no correlation can be measured"
            raise ConfigError(
                f"data.{name}", getattr(data, name), reason, "Use rows with different labels that are public"
            )
        kept = [column for column in rows.column_names if column != role]
        found[name] = rows.select_columns(kept).add_column(role, values)
    _check_range(np.asarray(found["train"][role][:]), task, data)
    return found


def _numbers(rows: Dataset, task: Task, data: DataConfig, split: str) -> np.ndarray:
    """(N,) float64 labels of a split."""
    role, feature = task.label_column, rows.features[task.label_column]
    key, column = f"data.columns.{role}", data.column(role)
    kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if not kind.startswith(("int", "uint", "float", "decimal", "string", "large_string")):
        reason = f"in {split} it holds {kind}, not numbers"
        raise ConfigError(key, column, reason, "Name a column of numbers")
    values = np.array([_number(value) for value in rows[role][:]])
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        first = rows[int(bad[0])][role]
        reason = f"{rows_that(bad, 'has', 'have')} no finite number as label; row {bad[0]} has {first!r}"
        raise ConfigError(
            f"data.{split}", getattr(data, split), reason, "Correct or drop these rows, or use them as data.transfer"
        )
    return values


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def _check_range(train: np.ndarray, task: Task, data: DataConfig) -> None:
    largest, deviation = float(np.abs(train).max()), float(train.std())
    step = largest / _STEPS
    if largest <= _LARGEST and step * _STEPS_PER_DEVIATION <= deviation:
        return
    reason = f"its labels reach {largest:g} with a standard deviation of {deviation:.3g}, "
    reason += (
        f"and the teachers' values are kept in 16 bits, in which they would be rounded to steps of {step:.3g}"
        if largest <= _LARGEST
        else f"and the teachers' values are kept in 16 bits, which end at 65504, so use at most {_LARGEST}"
    )
    column = data.column(task.label_column)
    hint = "Subtract their mean and divide by their standard deviation, and write that into the data"
    raise ConfigError(f"data.columns.{task.label_column}", column, reason, hint)
