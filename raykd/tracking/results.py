"""The results of a command: intervals, the table on the screen, `results.json`. The conclusion is the report's."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from raykd.common.atomic import write_atomically
from raykd.common.intervals import interval
from raykd.common.metrics import decimals, sign
from raykd.common.output_files import RESULTS
from raykd.common.redaction import redact
from raykd.common.units import latency
from raykd.tracking.chance import at_or_worse, is_at_chance

SAME_MODEL = "is the same model as teacher {0} (equal seed, data and training), so the two are not independent."

_EXTRA = ("spearman", "mse", "nll", "perplexity", "divergence", "ece", "exact", "exact_match", "answer_f1", "rouge_l")
# Columns, of which results.json has all.
_LESS_IMPORTANT = (
    "ece",
    "exact",
    "rouge_l",
    "exact_match",
    "perplexity",
    "divergence",
    "nll",
    "mse",
    "spearman",
    "method",
    "seeds",
    "validation",
)


@dataclass(frozen=True)
class Scored:
    """One run's scores.

    scores: (examples,), the primary metric of each test example.
    row_groups: (examples,), equal for test examples that depend on each other; None if all are independent.
    chance: by metric, the value on test of a model that has learnt nothing (`chances`); {} if not known.
    primary_metric: its name, which says whether a lower value is better.
    grouped_by: the name of the column that `row_groups` come from.
    """

    name: str
    role: str  # teacher, ensemble, baseline or student
    method: str
    seed: int | None
    metrics: dict[str, dict[str, float]]
    scores: np.ndarray
    mlflow_run_id: str
    details: dict[str, Any]
    row_groups: Sequence[Hashable] | None = None
    chance: Mapping[str, float] = field(default_factory=dict)
    primary_metric: str = ""
    grouped_by: str = ""

    @property
    def at_chance(self) -> bool:
        """Whether it is at chance on test, or worse: it has learnt nothing."""
        return is_at_chance(self.metrics.get("test", {}), self.chance)

    def as_json(self) -> dict[str, Any]:
        """`interval` is that of the primary metric on test; null twice if there is none."""
        ends = interval(self.scores, self.row_groups) if len(self.scores) else (math.nan, math.nan)
        bounds = [None if math.isnan(end) else end for end in ends]
        return {
            "name": self.name,
            "role": self.role,
            "method": self.method,
            "seed": self.seed,
            "metrics": self.metrics,
            "interval": bounds,
            "chance": self.chance.get(self.primary_metric),
            "at_chance": self.at_chance,
            "mlflow_run_id": self.mlflow_run_id,
            **self.details,
        }


def grouped(runs: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    """Runs grouped if they differ only in the seed, with each group's name. Generations are separate groups."""
    groups: dict[tuple[bool, str], list[Scored]] = {}  # a teacher may have the name of a method
    for run in runs:
        given = run.role in ("teacher", "ensemble")
        groups.setdefault((given, run.details.get("group", run.name)), []).append(run)
    return [(name, group) for (_, name), group in groups.items()]


def table(runs: Sequence[Scored], headline: str, percent: bool, width: int) -> Table:
    """One line per group: the primary metric on validation and test, its interval, and the calibration.

    width: of the screen, in characters. Columns that it has no room for are left out, in the order of _LESS_IMPORTANT.
    """
    over = f"examples, grouped by {runs[0].grouped_by}" if runs[0].row_groups else "examples"
    there = {name for run in runs for name in run.metrics["test"]}
    extra = [name for name in _EXTRA if name in there and name != headline]
    digits = {n: _digits(runs, n, percent) for n in (headline, *extra)}
    lines, untaught = [], []
    for name, group in grouped(runs):

        def mean(split: str, metric: str, group: list[Scored] = group) -> str:
            values = [r.metrics[split][metric] for r in group if metric in r.metrics[split]]
            return f"{np.mean(values):.{digits[metric]}f}" if values else ""

        failed = sum(run.at_chance for run in group)
        if failed:
            untaught.append(name if failed == len(group) else f"{name} ({failed} of {len(group)} seeds)")
        low, high = interval(np.stack([r.scores for r in group]), group[0].row_groups)
        line = {
            "": f"{name} *" if failed else name,
            "method": group[0].method,
            "seeds": ", ".join(str(r.seed) for r in group if r.seed is not None),
            "validation": mean("validation", headline),
            "test": mean("test", headline),
            "interval": "" if math.isnan(low) else f"{low:.{digits[headline]}f} to {high:.{digits[headline]}f}",
        }
        lines.append(line | {metric: mean("test", metric) for metric in extra})
    widths = {column: max(len(column), *(len(line[column]) for line in lines)) for column in lines[0]}
    for column in _LESS_IMPORTANT:
        if sum(widths.values()) + 3 * len(widths) + 1 > width:  # three characters a column are its border
            widths.pop(column, None)
    lower = ", lower is better" if sign(headline) < 0 else ""
    shown = Table(title=f"{headline}{lower} (95% interval over test {over})", title_justify="left")
    captions = []
    if untaught:
        chance = f"{runs[0].chance[headline]:.{digits[headline]}f} on test"
        text = f"* has learnt nothing: {at_or_worse(headline)} chance, which is {chance}: "
        captions.append(text + ", ".join(untaught))
    if "answer_f1" in widths and (silent := [line[""] for line in lines if not line["answer_f1"]]):
        captions.append(f"no texts were generated with: {', '.join(silent)}")
    if captions:
        shown.caption, shown.caption_justify = "\n".join(captions), "left"
    for column in widths:
        left = column in ("", "method", "seeds")
        shown.add_column(column, justify="left" if left else "right", no_wrap=column != "", overflow="fold")
    for line in lines:
        shown.add_row(*(line[column] for column in widths))
    return shown


def _digits(runs: Sequence[Scored], metric: str, percent: bool) -> int:
    """Decimals of a column. Percents, and what is written beside them, have two."""
    values = [abs(r.metrics["test"][metric]) for r in runs if metric in r.metrics["test"]]
    return 2 if percent else decimals(max(1.0, min(values)), 4)


def latencies(runs: Sequence[Scored]) -> str:
    """One line: the latency of one row of the teachers, the ensemble and a student; "" if it was not measured."""
    costs = {run.name if run.role in ("teacher", "ensemble") else "student": run.details["serving"]
             for run in runs if "serving" in run.details}  # fmt: skip
    shown = ", ".join(f"{name} {latency(cost['one_row'])}" for name, cost in costs.items())
    devices = ", ".join(dict.fromkeys(cost["device"] for cost in costs.values()))
    return f"latency of one row, median (10th to 90th percentile), on {devices}: {shown}" if costs else ""


def write_results(folder: Path, runs: Sequence[Scored], about: dict[str, Any]) -> Path:
    path = folder / RESULTS
    results = redact({**about, "runs": [r.as_json() for r in runs]})
    write_atomically(path, json.dumps(results, indent=1).encode())
    return path
