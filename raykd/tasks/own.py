"""Tasks of the user's own code: `task.type: my_module:MyTask`."""

from collections.abc import Mapping, Sequence

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.own_objects import guard_methods, imported
from raykd.tasks.common import Batch, Evaluation, Task

_KEY = "task.type"
_ATTRIBUTES = (
    "primary_metric",
    "metric_names",
    "auto_model",
    "processor",
    "columns",
    "label_column",
    "model_inputs",
)
_METHODS = (
    "preprocessing",
    "check_rows",
    "encode",
    "shapes",
    "collate",
    "decisions",
    "summarize",
    "predictions",
    "evaluate",
)
_RETURNS: dict[str, type] = {
    "encode": Mapping,
    "shapes": np.ndarray,
    "collate": Batch,
    "summarize": Sequence,
    "evaluate": Evaluation,
    "predictions": Sequence,
}


def own_task(path: str) -> type[Task]:
    """The class. Raises ConfigError if it is no task, or lacks members that every task has."""
    found = imported(path, _KEY)
    if not isinstance(found, type) or not issubclass(found, Task):
        hint = "Derive it from raykd.tasks.Task, or from one of raykd's tasks"
        raise ConfigError(_KEY, path, "it is not derived from raykd.tasks.Task", hint)
    lacking = [name for name in _ATTRIBUTES if not hasattr(found, name)]
    lacking += [name for name in _METHODS if getattr(found, name) is getattr(Task, name)]
    if lacking:
        hint = "Add them (raykd/tasks/common.py describes each), or derive it from one of raykd's tasks"
        raise ConfigError(_KEY, path, f"it lacks {', '.join(lacking)}", hint)
    for flag, kind in (("predicts_values", "regression"), ("predicts_tokens", "text-generation")):
        if getattr(found, flag) != (found.kind == kind):
            reason = f"its {flag} is {getattr(found, flag)}, and it is derived from {found.kind or 'Task alone'}"
            raise ConfigError(_KEY, path, reason, f"Derive tasks with {flag} from the class of {kind}, and others not")
    if found.primary_metric not in found.metric_names:
        reason = f"its primary_metric, {found.primary_metric}, is not one of its metric_names"
        raise ConfigError(_KEY, path, reason, "Add it to metric_names")
    guard_methods(found, Task, _KEY, path, _RETURNS)
    return found
