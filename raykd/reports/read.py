"""Read an experiment from MLflow: its runs, their metrics and per-example scores."""

import gzip
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raykd.common.metrics import sign
from raykd.common.output_files import RESULTS
from raykd.reports.artifacts import Artifacts
from raykd.tracking.chance import chances_from, is_at_chance
from raykd.tracking.linked import linked_runs, links_of
from raykd.tracking.mlflow_store import children, one_line
from raykd.tracking.tags import GROUPS, Tag

log = logging.getLogger(__name__)

SERVING = "serving.json"  # artifact of the command's run: what its models cost to serve
EXAMPLES = "examples.json"  # the same run's: test examples that the report shows


@dataclass(frozen=True)
class Child:
    """A child run of an experiment.

    role: teacher, ensemble, baseline, student or trial.
    state: finished, failed, or a trial's own, such as pruned.
    metrics: the latest value by name.
    steps: by the same names, the optimizer step of that value.
    linked: whether it is a run of an earlier command, which this experiment reuses.
    artifacts: the address of its artifacts.
    """

    id: str
    name: str
    role: str
    state: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    steps: dict[str, int]
    linked: bool = False
    artifacts: str = ""

    @property
    def method(self) -> str:
        return self.params.get("method.type", "")

    @property
    def arm(self) -> str:
        """The method and its search space that a trial belongs to."""
        return self.tags.get(Tag.ARM, self.method)

    @property
    def control(self) -> bool:
        return self.role == "baseline" or self.tags.get(Tag.CONTROL) == "true"

    def number(self, param: str, default: float = 0.0) -> float:
        """A parameter as a number; `default` if it is missing or not a number."""
        try:
            return float(self.params.get(param, default))
        except ValueError:
            return default

    def validation(self, metric: str) -> float | None:
        """The final value; for a run that was pruned, the last one."""
        return self.metrics.get(f"final_validation/{metric}", self.metrics.get(f"validation/{metric}"))


@dataclass(frozen=True)
class RunPredictions:
    """The scores of one run on one split.

    ids: of the raw examples, in order.
    scores: (examples,), the primary metric of each.
    row_groups: (examples,), equal for examples that depend on each other; None if all are independent.
    """

    ids: list[Any]
    scores: np.ndarray
    row_groups: list[Any] | None


@dataclass
class Experiment:
    """A parent run with its child runs.

    percent, share, graded_rows: as in `raykd.tasks.Task`.
    metric: the validation metric that models are chosen by.
    missing: what could not be read, one line each.
    chance: by split, then by metric: what a model that has learnt nothing seldom exceeds.
    serving: by the name of the run, what its model costs to serve (`raykd.models.serving_cost.measure`).
    examples: by the id of the example in the predictions on test, what the report shows of it.
    groups: by split (examples,), in their order, a number that is equal for examples that depend on each other.
    grouped_by: the name of the data's column that says so; "" if none does.
    live: whether the teachers answered every batch of the trainings, so that the store has no logits of these rows.
    """

    id: str
    name: str
    uri: str
    command: str
    task: str
    primary_metric: str
    percent: bool
    metric: str
    algorithm: str
    version: str
    children: list[Child]
    client: Any = field(repr=False)
    missing: list[str] = field(default_factory=list)
    share: bool = True
    graded_rows: bool = True
    params: dict[str, str] = field(default_factory=dict)
    started: int = 0  # in milliseconds since 1970; 0: not known
    source: str = ""  # the command line
    experiment_id: str = ""
    serving: dict[str, dict[str, Any]] = field(default_factory=dict)
    examples: dict[str, dict[str, str]] = field(default_factory=dict)
    chance: dict[str, dict[str, float]] = field(default_factory=dict)
    test_rows: str = ""  # their hash; "": not known
    versions: str = ""  # of raykd and of what decides the numbers
    earlier: list[str] = field(default_factory=list)  # the command lines before `source`, which continued them
    extended: int = 0  # how often it was continued to try or train more after it had been scored on test
    data_notes: list[str] = field(default_factory=list)  # what is doubtful about the data
    groups: dict[str, list[int]] = field(default_factory=dict)
    grouped_by: str = ""
    live: bool = False

    def of(self, *roles: str) -> list[Child]:
        return [c for c in self.children if c.role in roles]

    @property
    def sign(self) -> int:
        """1 if a higher value of `metric` is better, -1 otherwise."""
        return sign(self.metric)

    @property
    def lower(self) -> bool:
        """Whether a lower value of the primary metric is better."""
        return sign(self.primary_metric) < 0

    def at_chance(self, run: Child, split: str) -> bool:
        """Whether its final score is at chance or worse, so that it has learnt nothing."""
        prefix = f"final_{split}/"
        metrics = {name.removeprefix(prefix): v for name, v in run.metrics.items() if name.startswith(prefix)}
        return is_at_chance(metrics, self.chance.get(split, {}))

    def history(self, run: Child, metric: str) -> dict[int, float]:
        """Value by optimizer step."""
        return {p.step: p.value for p in self.client.get_metric_history(run.id, metric)}

    def prediction_rows(self, run: Child, split: str) -> list[dict[str, Any]]:
        """A run's predictions, one dict per example, as its task wrote them. Raises an error of the artifact store."""
        name = f"predictions-{split}.jsonl.gz"
        artifacts = Artifacts(self.client, self.uri, run.id, run.artifacts)
        with artifacts.open(name) as path, gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().rstrip("\n").split("\n")
            return json.loads(f"[{','.join(lines)}]")  # takes a third of the time that a call for each line does

    def predictions(self, run: Child, split: str) -> RunPredictions | None:
        """None, and a line in `missing`, if the run has no usable predictions."""
        name = f"predictions-{split}.jsonl.gz"
        try:
            rows = self.prediction_rows(run, split)
            scores = np.array([row["score"] for row in rows], dtype=np.float64)
            row_groups: list[Any] | None = self.groups.get(split)
            if (row_groups is None or len(row_groups) != len(rows)) and rows and "context" in rows[0]:
                row_groups = [row["context"] for row in rows]
            if row_groups is not None and len(row_groups) != len(rows):
                reason = f"has another number of rows than {GROUPS}, so it has no intervals."
                self.missing.append(f"{run.name}: {name} {reason}")
                return None
            return RunPredictions([row["id"] for row in rows], scores, row_groups)
        except KeyError as error:
            self.missing.append(f"{run.name}: {name} has no {error} because an older raykd wrote it.")
        except Exception as error:  # artifact stores have no common exception
            self.missing.append(f"{run.name}: {name} cannot be read ({type(error).__name__}), so it has no intervals.")
        return None


def read(client: Any, uri: str, parent: Any) -> Experiment:
    """parent: the experiment's MLflow run (`raykd.reports.locate.find_run`)."""
    tags = parent.data.tags
    artifacts = Artifacts(client, uri, parent.info.run_id, parent.info.artifact_uri)
    names = artifacts.names()
    results = {} if Tag.PRIMARY_METRIC in tags else _results(artifacts)
    headline = tags.get(Tag.PRIMARY_METRIC) or results.get("headline", "accuracy")
    found = sorted(_children(client, parent), key=lambda pair: pair.name)
    gone = len(links_of(tags)) - sum(child.linked for child in found)
    groups = artifacts.json(GROUPS) if GROUPS in names else {}
    by = groups.pop("column", "")
    return Experiment(
        id=parent.info.run_id,
        name=parent.info.run_name,
        uri=uri,
        command=tags.get(Tag.COMMAND, ""),
        task=tags.get(Tag.TASK) or results.get("task", ""),
        primary_metric=headline,
        percent=tags.get(Tag.PERCENT, str(headline == "f1").lower()) == "true",
        share=tags.get(Tag.SHARE, "true") == "true",
        graded_rows=tags.get(Tag.GRADED_ROWS, "true") == "true",
        metric=tags.get(Tag.METRIC, headline).rpartition("/")[2],
        algorithm=tags.get(Tag.ALGORITHM, ""),
        version=tags.get(Tag.VERSION, ""),
        children=found,
        client=client,
        missing=[f"Runs of earlier commands that it reuses are no longer in MLflow: {gone}."] if gone else [],
        params=dict(parent.data.params),
        started=parent.info.start_time or 0,
        source=tags.get("mlflow.source.name", ""),
        experiment_id=parent.info.experiment_id,
        data_notes=tags.get(Tag.DATA_NOTES, "").splitlines(),
        versions=tags.get(Tag.VERSIONS, ""),
        earlier=tags.get(Tag.EARLIER, "").splitlines(),
        extended=int(tags.get(Tag.EXTENDED, 0)),
        serving=artifacts.json(SERVING).get("models", {}) if SERVING in names else {},
        examples=artifacts.json(EXAMPLES) if EXAMPLES in names else {},
        chance={split: chances_from(tags, split, headline) for split in ("validation", "test")},
        groups=groups,
        grouped_by=by,
        live=tags.get(Tag.LOGITS_MODE) == "live",  # an older raykd does not say
        test_rows=next((one.dataset.digest for one in _inputs(parent) if "test" in {t.value for t in one.tags}), ""),
    )


def _inputs(parent: Any) -> list[Any]:
    return list(parent.inputs.dataset_inputs) if parent.inputs else []


def _results(artifacts: Artifacts) -> dict[str, Any]:
    """The `results.json` that the run logged; {} if it ended before that."""
    try:
        return artifacts.json(RESULTS)
    except Exception as error:  # not there, with an error that differs between stores; or the store is unavailable
        log.info("run %s: no results.json can be read (%s)", artifacts.run_id, one_line(error))
        return {}


def _children(client: Any, parent: Any) -> Iterator[Child]:
    where = client, parent.info.experiment_id
    own = [(run, run.data.tags.get(Tag.ROLE, "")) for run in children(*where, parent.info.run_id)]
    linked = list(linked_runs(*where, parent.data.tags))
    for run, role in own + linked:
        data, points = run.data, run.data.to_proto().metrics
        yield Child(
            id=run.info.run_id,
            name=run.info.run_name,
            role=role,
            state=data.tags.get(Tag.STATE, run.info.status.lower()),
            tags=dict(data.tags),
            params=dict(data.params),
            metrics=dict(data.metrics),
            steps={p.key: int(p.step) for p in points},
            artifacts=run.info.artifact_uri,
            linked=data.tags.get("mlflow.parentRunId") != parent.info.run_id,
        )
