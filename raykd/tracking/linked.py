"""Runs of earlier commands that a command reuses: it links to them, instead of writing the same points again.

The tags `raykd.linked.0`, `raykd.linked.1`, ... of the command's own run name them, as "role:id,role:id,...".
A run can be linked to once it is complete: only then does it have the tag `raykd.identity`, a hash of all that it says.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from raykd.tracking.logged_model import log_model
from raykd.tracking.mlflow_store import search
from raykd.tracking.run import Run
from raykd.tracking.tags import Tag

_PER_TAG = 100  # links in one tag: an id and its role take up to 45 characters, and a tag 5,000
_AT_ONCE = 100  # runs that are asked for in one query
_NOTE, _NAMED = "mlflow.note.content", 30  # runs that the note links to


class LinkedRun:
    """A complete run of an earlier command. What a command would log to it is there already, so nothing is written."""

    def __init__(self, client: Any, run: Any) -> None:
        """run: MLflow's entity."""
        self.id, self.experiment_id, self.client = run.info.run_id, run.info.experiment_id, client
        self.name, self.tags, self.metrics = run.info.run_name, run.data.tags, run.data.metrics
        self._models = [model.model_id for model in (run.outputs.model_outputs if run.outputs else ())]
        self._last_step = max((int(point.step) for point in run.data.to_proto().metrics), default=0)

    def says(self, metrics: Mapping[str, float]) -> bool:
        """Whether these are the run's latest values."""
        return all(
            name in self.metrics
            and (math.isclose(value, self.metrics[name], rel_tol=1e-9) or math.isnan(value + self.metrics[name]))
            for name, value in metrics.items()
        )

    def model(self, folder: Path, name: str) -> str:
        """The id of the model that the run has already; without one, it is logged to the run."""
        for model_id in self._models:
            try:
                if self.client.get_logged_model(model_id).status == "READY":
                    return str(model_id)
            except Exception:  # deleted, with an error that differs between stores
                continue
        return log_model(self.client, self.id, self.experiment_id, self._last_step, folder, name)

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def log_anew(self, metrics: Mapping[str, float]) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def artifact(self, path: Path, folder: str | None = None) -> None: ...
    def artifact_json(self, value: object, name: str) -> None: ...
    def dataset(self, *given: Any, **more: Any) -> None: ...
    def finish(self, *given: Any) -> None: ...
    def end(self, error: BaseException | None) -> None: ...
    def stopping(self) -> None: ...

    def flush(self) -> bool:
        return True


AnyRun = Run | LinkedRun


def complete_runs(client: Any, experiment_id: str) -> dict[str, list[Any]]:
    """The runs of an experiment that can be linked to, by identity, the newest first."""
    runs: dict[str, list[Any]] = {}
    for run in search(client, experiment_id, f"attributes.status = 'FINISHED' and tags.`{Tag.IDENTITY}` != ''"):
        if run.data.tags.get(Tag.ROLE) != "superseded":
            runs.setdefault(run.data.tags[Tag.IDENTITY], []).append(run)
    return runs


def links_of(tags: Mapping[str, str]) -> dict[str, str]:
    """The roles of the runs that a command links to, by their ids. tags: of the command's run."""
    pairs = [pair for name, value in tags.items() if name.startswith(Tag.LINKS) for pair in value.split(",") if pair]
    return {run_id: role for role, _, run_id in (pair.partition(":") for pair in pairs)}


def as_tags(links: Mapping[str, str], before: Collection[str] = ()) -> dict[str, str]:
    """The tags that `links_of` reads. before: links that the run has so far; there can be more of them."""
    pairs = [f"{role}:{run_id}" for run_id, role in links.items()]
    parts = [",".join(pairs[start : start + _PER_TAG]) for start in range(0, len(pairs), _PER_TAG)]
    emptied = {f"{Tag.LINKS}{n}": "" for n in range(math.ceil(len(before) / _PER_TAG))}
    return emptied | {f"{Tag.LINKS}{n}": part for n, part in enumerate(parts)}


def note_of(experiment_id: str, names: Mapping[str, str], description: str = "") -> dict[str, str]:
    """The tag that MLflow's page of a run shows as its description.

    names: of the linked runs, by their ids.
    description: what comes before them.
    """
    shown = [f"[{name}](#/experiments/{experiment_id}/runs/{run_id})" for run_id, name in names.items()]
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    text = f"Reused runs of earlier commands, which have the curves and scores: {', '.join(shown[:_NAMED])}{more}."
    return {_NOTE: "\n\n".join(filter(None, (description, text if names else "")))}


def linked_runs(client: Any, experiment_id: str, tags: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
    """The runs that a command links to and that are not deleted, with their roles. tags: of the command's run."""
    links = links_of(tags)
    ids = list(links)
    for start in range(0, len(ids), _AT_ONCE):
        listed = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _AT_ONCE])
        for run in search(client, experiment_id, f"attributes.run_id IN ({listed})"):
            yield run, links[run.info.run_id]
