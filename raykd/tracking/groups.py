"""Rows that depend on each other, as a command's run names them to the report."""

from typing import Any

from raykd.common.intervals import group_numbers
from raykd.data.groups import grouped_by, groups_of
from raykd.plan.prepare import Prepared


def groups_json(prepared: Prepared, column: str | None) -> dict[str, Any]:
    """{"column": its name}, and for validation and test (N,) the number of each row's group; {} without groups."""
    if not (name := grouped_by(prepared.splits["test"], prepared.task, column)):
        return {}
    found: dict[str, Any] = {"column": name}
    for split in ("validation", "test"):
        rows = prepared.splits[split]
        found[split] = group_numbers(groups_of(rows, prepared.task), len(rows.rows)).tolist()
    return found
