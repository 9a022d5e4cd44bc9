"""Records a command in MLflow: its trainings' events as they happen, and their scores at the end."""

import gzip
import json
import logging
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.output_files import CONFIG
from raykd.common.redaction import scrub
from raykd.data.groups import grouped_by, groups_of
from raykd.plan.job import Job, best_scores
from raykd.plan.trainings import same_training
from raykd.tasks import Evaluation
from raykd.tasks.chance import chances
from raykd.tracking.chance import chance_tags, is_at_chance
from raykd.tracking.child_runs import searched_values
from raykd.tracking.command_runs import CommandRuns
from raykd.tracking.groups import groups_json
from raykd.tracking.linked import AnyRun, LinkedRun
from raykd.tracking.mlflow_store import one_line
from raykd.tracking.results import Scored
from raykd.tracking.tags import GROUPS, Tag

log = logging.getLogger(__name__)
_LONGEST = 4000  # characters of a tag


class Recorder(CommandRuns):
    """The runs of a command, and the scores in them."""

    def __enter__(self) -> Self:
        """Raises ConfigError if MLflow refuses a file or a tag: it is better known before the trainings than after."""
        with ExitStack() as refused:
            refused.push(self.parent)
            tags = chance_tags(self.chance, self.prepared.task.primary_metric)
            if notes := [note for split in self.prepared.splits.values() for note in split.notes]:
                tags |= {Tag.DATA_NOTES: "\n".join(notes)[:_LONGEST]}
            groups = groups_json(self.prepared, self.config.data.group)
            try:
                self.parent.artifact(self.config.folder / CONFIG)
                self.parent.set_tags(tags)
                if groups:
                    self.parent.artifact_json(groups, GROUPS)
            except Exception as error:  # MLflow has no error common to its stores
                uri, reason = scrub(self.tracking.uri), f"it refuses what a run begins with ({one_line(error)})"
                hint = "Check that this process may write to the store of its artifacts, too"
                raise ConfigError("tracking.uri", uri, reason, hint) from error
            refused.pop_all()
        return self

    def scored(
        self,
        name: str,
        role: str,
        method: str,
        evaluations: Mapping[str, Evaluation],
        details: Mapping[str, Any] | None = None,
    ) -> Scored:
        """Record the scores of a teacher or of the ensemble."""
        metrics = {split: e.metrics for split, e in evaluations.items()}
        run = self._run_saying(name, role, metrics)
        self._final(run, metrics)
        if isinstance(run, LinkedRun):
            return self._teacher_scores(name, role, method, metrics, evaluations, run, details)
        tags = {Tag.LOGITS: self._keys.get(name, "")} | self._chance_tag("test", metrics)
        trained = [_dtype_tag(job.result()) for job in self.jobs.get(name, [])]
        if trained and all(tag == trained[0] for tag in trained):
            tags |= trained[0]
        with tempfile.TemporaryDirectory() as folder:
            for split, e in evaluations.items():
                with gzip.open(Path(folder, f"predictions-{split}.jsonl.gz"), "wt", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in e.predictions)
            with _warns_of(name):
                run.artifact(Path(folder))
                run.set_tags(tags | self._identity_tag(name))
        return self._teacher_scores(name, role, method, metrics, evaluations, run, details)

    def _run_saying(self, name: str, role: str, metrics: Mapping[str, Mapping[str, float]]) -> AnyRun:
        """The run of a teacher or of the ensemble. One of an earlier command only if it has these scores."""
        run = self._given(name, role)
        if isinstance(run, LinkedRun) and not (
            run.says(_final_names(metrics)) and run.tags.get(Tag.LOGITS) == self._keys.get(name)
        ):
            self._unlink(name)
            run = self._given(name, role)
        return run

    def _teacher_scores(
        self,
        name: str,
        role: str,
        method: str,
        metrics: dict[str, dict[str, float]],
        evaluations: Mapping[str, Evaluation],
        run: AnyRun,
        details: Mapping[str, Any] | None,
    ) -> Scored:
        self.has_scores.add(name)
        jobs = self.jobs.get(name, [])
        seed = jobs[0].seed if jobs else None
        scores, details = evaluations["test"].scores, dict(details or {})
        return Scored(name, role, method, seed, metrics, scores, run.id, details, *self._of_test)

    @cached_property
    def row_groups(self) -> Sequence[Hashable] | None:
        """(test examples,), equal for examples that depend on each other; None if all are independent."""
        return groups_of(self.prepared.splits["test"], self.prepared.task)

    @cached_property
    def chance(self) -> dict[str, dict[str, float]]:
        """`chances` of validation and test, by split."""
        task, splits = self.prepared.task, self.prepared.splits
        return {split: chances(task, splits[split].rows) for split in ("validation", "test")}

    @property
    def _of_test(self) -> tuple[Sequence[Hashable] | None, dict[str, float], str, str]:
        """What every `Scored` of the command says of the test split: its last four fields."""
        by = grouped_by(self.prepared.splits["test"], self.prepared.task, self.config.data.group)
        return self.row_groups, self.chance["test"], self.prepared.task.primary_metric, by

    def is_at_chance(self, split: str, metrics: Mapping[str, Mapping[str, float]]) -> bool | None:
        """Whether a model with these metrics is at chance on a split, or worse; None if chance is not known."""
        return is_at_chance(metrics[split], self.chance[split]) if self.chance[split] else None

    def _chance_tag(self, split: str, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """The tag that says so."""
        found = self.is_at_chance(split, metrics)
        return {} if found is None else {Tag.AT_CHANCE: str(found).lower()}

    def _final(self, run: AnyRun, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Log the final scores; they replace those of an earlier command."""
        for split, values in metrics.items():
            run.log_anew(_final_names({split: values}))

    def end_trial(self, job: Job, state: str, gpus: float, reason: str = "") -> None:
        """Record the end of a sweep's trial, without test scores, which must not influence any choice.

        state: "finished", "pruned" or "failed".
        gpus: held by the training, where its result does not say it.
        """
        name = job.name
        result = job.result() if state == "finished" else {}
        best = best_scores(result) if result else {}
        linked = self.children.runs.get(name)
        if isinstance(linked, LinkedRun) and not (
            best and linked.says(_final_names({"validation": best["validation"]}))
        ):
            self._unlink(name)
        run = self.event_log.drop(job, self.children.runs.pop(name, None))
        self.jobs.pop(name, None)
        if state == "finished":
            self._final(run, {"validation": best["validation"]})
            run.log_anew(_times(result, gpus))
        with _warns_of(name):
            if state == "finished":
                run.artifact(job.folder / "predictions-validation.jsonl.gz")
            finished = self._chance_tag("validation", best) | self._identity_tag(name) if best else {}
            finished |= _dtype_tag(result)
            run.set_tags({Tag.STATE: state} | finished)
        run.finish("FAILED" if state == "failed" else "FINISHED", reason or None)

    def end_waiting_trial(self, job: Job, reason: str) -> None:
        """End the run of a trial that has begun and that this command will not resume."""
        self.event_log.drop(job, self.children.runs[job.name])
        self.jobs.pop(job.name)
        self.children.runs.pop(job.name).finish("KILLED", reason or None)

    def trained(
        self,
        job: Job,
        role: str,
        gpus: float = 0.0,
        log_model: bool = True,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Scored:
        """Record the scores and files of the baseline or a student, of its best generation.

        gpus: held by the training, where its result does not say it.
        measured: by split, metrics of the model that were measured after the training.
        """
        result = job.result()
        best = best_scores(result)
        metrics = {split: {**values, **(measured or {}).get(split, {})} for split, values in best.items()}
        linked = self.children.runs[job.name]
        if isinstance(linked, LinkedRun) and not linked.says(_final_names(metrics)):
            self._unlink(job.name)
        logged = self._logged_run(job)
        run = logged.run
        self._final(run, metrics)
        run.log_anew(_times(result, gpus))
        details = {"group": logged.group, "model": result["model"], "seconds": result["seconds"]}
        details["setting"] = self.setting(job)
        if job.method.generations > 1:
            details["generation"] = result["best"] + 1
        if result["average"]:
            details["generations_average"] = result["average"]
        tags = self._chance_tag("test", metrics) | _dtype_tag(result)
        if teacher := self.same_training(job):
            details["same_training"] = tags[Tag.SAME_TRAINING] = teacher
        with _warns_of(job.name):
            for split in metrics:
                run.artifact(job.folder / f"predictions-{split}.jsonl.gz")
            run.set_tags(tags)
            if role == "student" and log_model:
                details["mlflow_model_id"] = run.model(Path(result["model"]), job.name)
            run.set_tags(self._identity_tag(job.name))
        scores, method = self._scores(job, "test"), job.method.type
        return Scored(job.name, role, method, job.seed, metrics, scores, run.id, details, *self._of_test)

    def setting(self, job: Job) -> dict[str, Any]:
        """The keys with which the command's own job trains this model again, alone: overrides for `distill`.

        Each key that the method uses is there, because a preset's value can differ from the neutral one.
        """
        axes = job.method.model_dump(exclude={"type"})
        flat = {"method.type": job.method.type} | {
            f"method.{k}": v for k, v in axes.items() if not job.method.unused(k)
        }
        flat |= {f"student.training.{k}": v for k, v in job.training.model_dump().items() if v is not None}
        searched = searched_values(self.children.searched, job)
        flat |= {f"student.{key}": value for key, value in searched.items() if value != ""}
        if job.lora:
            flat |= {f"student.lora.{k}": getattr(job.lora, k) for k in ("r", "alpha", "dropout")}
        return flat | {"student.seed": job.seed}

    def same_training(self, job: Job) -> str | None:
        """The teacher that is the same training with the same seed, and so the same model; None if there is none."""
        return same_training(job, {t.name: self.jobs.get(t.name, []) for t in self.config.teachers})

    def generations(self, job: Job) -> list[Scored]:
        """Born-again: the scores of every generation, for the table. The best one appears again as the student."""
        result, logged = job.result(), self._logged_run(job)
        if job.method.generations == 1:
            return []
        generations = []
        for i, metrics in enumerate(result["generations"]):
            group = f"{logged.group} generation {i + 1}"
            scores = self._scores(job, f"test_generation_{i + 1}")
            generations.append(
                Scored(
                    f"{job.name} generation {i + 1}",
                    "student",
                    job.method.type,
                    job.seed,
                    metrics,
                    scores,
                    logged.run.id,
                    {"group": group, "generation": i + 1},
                    *self._of_test,
                )
            )
        return generations

    def _scores(self, job: Job, name: str) -> np.ndarray:
        with np.load(job.folder / "scores.npz") as saved:
            return saved[name]


@contextmanager
def _warns_of(name: str) -> Iterator[None]:
    """Warn if MLflow refuses files or tags of a run. The command continues, because the store has what was trained.

    Such a run does not get the tag that lets later commands reuse it, so they send everything again.
    """
    try:
        yield
    except Exception as error:  # MLflow has no error common to its stores
        log.warning("%s: its files or tags are not all in MLflow (%s)", name, one_line(error))


def _times(result: Mapping[str, Any], gpus: float) -> dict[str, float]:
    """The metrics that say what a training took. gpus: that it held, if its result is an older raykd's."""
    return {"seconds": result["seconds"], "gpu_seconds": result.get("gpus", gpus) * result["seconds"]}


def _dtype_tag(result: Mapping[str, Any]) -> dict[str, str]:
    """result: of a training, `{}` without one. An older raykd's does not say it."""
    return {Tag.DTYPE: result["dtype"]} if "dtype" in result else {}


def _final_names(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Final scores under their names in MLflow. metrics: by split."""
    return {f"final_{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}
