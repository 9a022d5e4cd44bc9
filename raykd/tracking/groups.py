"""Rows that depend on each other, as a command's run names them to the report."""

from typing import Any

from raykd.common.intervals import cluster_of
from raykd.data.loading import groups_of
from raykd.plan.prepare import Prepared


def grouped_by(prepared: Prepared, column: str | None) -> str:
    """The name of the column whose equal values mark such rows; "" if there are none. column: `data.group`."""
    task, test = prepared.task, prepared.splits["test"]
    there = test.groups is not None or task.group_column in task.columns
    return (column or str(task.group_column)) if there else ""


def groups_json(prepared: Prepared, column: str | None) -> dict[str, Any]:
    """By split, the number of each row's group, in the rows' order; {} if there are none."""
    if not (name := grouped_by(prepared, column)):
        return {}
    found: dict[str, Any] = {"column": name}
    for split in ("validation", "test"):
        rows = prepared.splits[split]
        found[split] = cluster_of(groups_of(rows, prepared.task), len(rows.rows)).tolist()
    return found
