"""From MLflow to plain values: one experiment, its runs, their metrics and per-example scores."""

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raykd.tracking.store import children

LOWER_IS_BETTER = ("nll", "ece")  # as in raykd.training.evaluation, which takes seconds to import: with torch


@dataclass(frozen=True)
class Child:
    """One run below an experiment's.

    role: teacher, ensemble, baseline, student or trial. state: finished, failed, or what a trial says of itself.
    metrics: the latest value by name; steps: its optimizer step.
    """

    id: str
    name: str
    role: str
    state: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    steps: dict[str, int]

    @property
    def method(self) -> str:
        return self.params.get("method.type", "")

    @property
    def arm(self) -> str:
        """What a trial belongs to."""
        return self.tags.get("raykd.arm", self.method)

    @property
    def control(self) -> bool:
        return self.role == "baseline" or self.tags.get("raykd.control") == "true"

    def number(self, param: str, default: float = 0.0) -> float:
        """A parameter as a number; `default` if it is none or is not there."""
        try:
            return float(self.params.get(param, default))
        except ValueError:
            return default

    def validation(self, metric: str) -> float | None:
        """The final value, or, of a run that was cut short, the last one."""
        return self.metrics.get(f"final_validation/{metric}", self.metrics.get(f"validation/{metric}"))


@dataclass(frozen=True)
class Predictions:
    """One run on one split. ids: of the raw examples, in order. scores: (examples,), the headline of each.

    contexts: (examples,) which examples depend on one another (QA: they share a context), or None.
    """

    ids: list[Any]
    scores: np.ndarray
    contexts: list[str] | None


@dataclass
class Experiment:
    """One parent run with all that is below it. `missing`: what could not be read, a line each."""

    id: str
    name: str
    uri: str
    command: str
    task: str
    primary_metric: str
    percent: bool
    metric: str  # the validation metric that chooses
    algorithm: str
    version: str
    children: list[Child]
    client: Any = field(repr=False)
    missing: list[str] = field(default_factory=list)

    def of(self, *roles: str) -> list[Child]:
        return [c for c in self.children if c.role in roles]

    @property
    def sign(self) -> int:
        """1 if a higher value of the choosing metric is better, else -1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    def history(self, run: Child, metric: str) -> dict[int, float]:
        """optimizer step -> value."""
        return {p.step: p.value for p in self.client.get_metric_history(run.id, metric)}

    def predictions(self, run: Child, split: str) -> Predictions | None:
        """None, and a line in `missing`, if the run has none that can be used."""
        name = f"predictions-{split}.jsonl.gz"
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = self.client.download_artifacts(run.id, name, folder)
                with gzip.open(path, "rt", encoding="utf-8") as file:
                    rows = [json.loads(line) for line in file]
            scores = np.array([row["score"] for row in rows], dtype=np.float64)
            contexts = [row["context"] for row in rows] if rows and "context" in rows[0] else None
            return Predictions([row["id"] for row in rows], scores, contexts)
        except KeyError as error:
            self.missing.append(f"{run.name}: {name} has no {error}, it was written by an older raykd.")
        except Exception as error:  # a store's own: there is no common one
            self.missing.append(f"{run.name}: {name} cannot be read ({type(error).__name__}), so it has no intervals.")
        return None


def read(client: Any, uri: str, parent: Any) -> Experiment:
    """`parent`: MLflow's run of the experiment (`raykd.report.locate.find_run`)."""
    tags = parent.data.tags
    about = {} if "raykd.headline" in tags else _results(client, parent.info.run_id)
    headline = tags.get("raykd.headline") or about.get("headline", "accuracy")
    return Experiment(
        id=parent.info.run_id,
        name=parent.info.run_name,
        uri=uri,
        command=tags.get("raykd.command", ""),
        task=tags.get("raykd.task") or about.get("task", ""),
        primary_metric=headline,
        percent=tags.get("raykd.percent", str(headline == "f1").lower()) == "true",
        metric=tags.get("raykd.metric", headline).rpartition("/")[2],
        algorithm=tags.get("raykd.algorithm", ""),
        version=tags.get("raykd.version", ""),
        children=sorted(_children(client, parent), key=lambda pair: pair.name),
        client=client,
    )


def _results(client: Any, run_id: str) -> dict[str, Any]:
    """`results.json` as its run logged it; {} if the run ended before."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return json.loads(Path(client.download_artifacts(run_id, "results.json", folder)).read_text())
        except Exception:
            return {}


def _children(client: Any, parent: Any) -> Iterator[Child]:
    for run in children(client, parent.info.experiment_id, parent.info.run_id):
        data, points = run.data, run.data.to_proto().metrics
        yield Child(
            id=run.info.run_id,
            name=run.info.run_name,
            role=data.tags.get("raykd.role", ""),
            state=data.tags.get("raykd.state", run.info.status.lower()),
            tags=dict(data.tags),
            params=dict(data.params),
            metrics=dict(data.metrics),
            steps={p.key: int(p.step) for p in points},
        )
