"""Rows that depend on each other, as a command's run names them to the report: predictions have their ids alone."""

from typing import Any

import numpy as np

from raykd.data.loading import groups_of
from raykd.plan.prepare import Prepared


def grouped_by(prepared: Prepared, column: str | None) -> str:
    """The name of the column whose equal values mark such rows; "" if there are none. column: `data.group`."""
    default = prepared.task.group_column
    return column or (default if default and default in prepared.splits["test"].rows.column_names else "")


def groups_json(prepared: Prepared, column: str | None) -> dict[str, Any]:
    """By split, the rows' ids and the number of each one's group; {} if there are none."""
    if not (name := grouped_by(prepared, column)):
        return {}
    found: dict[str, Any] = {"column": name}
    for split in ("validation", "test"):
        numbers = np.unique(np.array(groups_of(prepared.splits[split], prepared.task)), return_inverse=True)[1]
        ids = prepared.task.example_ids(prepared.splits[split].rows)
        found[split] = {"ids": list(ids), "groups": numbers.reshape(-1).tolist()}
    return found
