"""The typed schema of a job's YAML, and the checks that concern several of its sections.

The sections are defined in `data`, `models`, `services`, `methods` and `search`, and imported from here. Importable
without torch or Ray.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from raykd.common.environment import home
from raykd.common.errors import ConfigError
from raykd.common.output_files import ARTIFACTS, DATABASE, STORE
from raykd.config.data import AUGMENTS, AugmentConfig, DataConfig, TaskConfig, kind_of_task
from raykd.config.kept import check_kept, for_largest
from raykd.config.messages import invalid, user_error
from raykd.config.methods import Method, check_for_values, for_values
from raykd.config.models import ModelConfig, RecipeConfig, StudentConfig, TeacherConfig, TrainingConfig
from raykd.config.search import SearchConfig
from raykd.config.section import NAME, Place, Section
from raykd.config.services import LogitsConfig, RayConfig, TrackingConfig

__all__ = [
    "AUGMENTS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "LogitsConfig",
    "ModelConfig",
    "PredictConfig",
    "RayConfig",
    "RecipeConfig",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
]

RESERVED = (STORE, DATABASE, ARTIFACTS)  # in `output`, so no names of experiments


class Config(Section):
    """One experiment: an ensemble, a method, a student."""

    name: str = Field(pattern=NAME, description="the experiment; its files are in output/name")
    output: Place = Field(
        "runs",
        description="folder for runs, store and (by default) MLflow, shared by all nodes; a relative path is relative "
        "to RAYKD_HOME, else to the current folder (in a submitted job: ~/raykd)",
    )
    task: TaskConfig = Field(description="what the models predict")
    data: DataConfig = Field(description="the rows")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({}),
        description="shared by teachers, baseline and student, for a fair comparison",
    )
    teachers: list[TeacherConfig] = Field(min_length=1, description="the ensemble")
    student: StudentConfig = Field(description="the student")
    method: Method = Field(default_factory=lambda: Method.model_validate({}), description="how to distil")
    baseline: bool = Field(
        True,
        description="also fine-tune the student without teachers, with the same seeds and number of steps; a sweep "
        "always does, as a control",
    )
    search: SearchConfig = Field(
        default_factory=lambda: SearchConfig.model_validate({}), description="what `raykd sweep` searches"
    )
    logits: LogitsConfig = Field(
        default_factory=lambda: LogitsConfig.model_validate({}), description="how logits reach the student"
    )
    tracking: TrackingConfig = Field(default_factory=lambda: TrackingConfig.model_validate({}), description="MLflow")
    ray: RayConfig = Field(default_factory=lambda: RayConfig.model_validate({}), description="the cluster")

    @field_validator("output")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if "://" in value:
            hint = "Give a folder that all nodes share, such as one on NFS; logits alone can go to logits.storage"
            raise invalid(value, "runs and models are written to a folder, not to an address", hint)
        return os.path.abspath(os.path.join(home(), value))

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, given: Any) -> Any:
        task = given.get("task") if isinstance(given, dict) else None
        if isinstance(task, dict) and kind_of_task(str(task.get("type"))) == "regression":
            return {**given, "method": for_values(given.get("method"))}
        return for_largest(given)

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.name in RESERVED:
            raise ConfigError("name", self.name, "output holds another thing of this name", "Use another name")
        names = [t.name for t in self.teachers]
        for name in names:
            if name in ("ensemble", "baseline"):
                raise ConfigError("teachers", name, "the table of results uses this name", "Rename the teacher")
            if names.count(name) > 1:
                raise ConfigError("teachers", name, "two teachers have this name", "Give each its own name")
        if self.method.teacher is not None and self.method.teacher not in names:
            raise ConfigError(
                "method.teacher",
                self.method.teacher,
                f"the teachers are {', '.join(names)}",
                "Name one of them, or remove it to distil from the ensemble",
            )
        self._check_values()
        self._check_live()
        check_kept(self)
        self._check_trainings()
        return self

    def _check_trainings(self) -> None:
        """Check each training's settings with its number of workers, and with the task."""
        for key, (training, workers) in self.training_sections().items():
            if training.batch_size < (least := workers * training.accumulation):
                reason = f"some of {workers} workers would lack rows in some of {training.accumulation} accumulations"
                raise ConfigError(
                    f"{key}.batch_size", training.batch_size, reason, f"Use at least {least}, or fewer accumulations"
                )
            if training.compile and workers > 1:
                reason = f"a training of student.workers = {workers} is not compiled"
                raise ConfigError("training.compile", True, reason, "Remove it, or set student.workers=1")
            if training.compile and self.task.predicts_tokens and key != "training":
                reason = f"the loss of {self.task.type} goes through parts of the model, which are not compiled"
                raise ConfigError("training.compile", True, reason, "Remove it")

    def _check_values(self) -> None:
        """Check the settings of a task that predicts values."""
        if not self.task.predicts_values:
            return
        check_for_values(self.method)
        if self.method.weighting == "correctness" and self.task.tolerance is None:
            reason = "method.weighting=correctness needs to know how far from the label a teacher is wrong"
            raise ConfigError("task.tolerance", None, reason, "Set it, such as to a tenth of the labels' range")

    def _check_live(self) -> None:
        """Check live logits, and the augmentation that needs them."""
        augment, live, generations = self.data.augment, self.logits.mode == "live", self.method.generations
        if augment is not None:
            known = AUGMENTS.get(self.task.kind, ())
            if not known:
                kind = self.task.type.replace("-", " ")
                labels = "tokens of" if self.task.predicts_tokens else "positions in"
                reason = f"{kind} has no augmentation, because its labels are {labels} the text"
                raise ConfigError("data.augment", augment.used, reason, "Remove it")
            for name, value in augment.used.items():
                if name not in known:
                    reason = f"{self.task.type} does not use it"
                    raise ConfigError(f"data.augment.{name}", value, reason, f"Remove it, or use {' or '.join(known)}")
            if self.method.distils and not live:
                reason = "stored logits belong to rows that do not change"
                raise ConfigError("data.augment", augment.used, reason, "Set logits.mode=live, or remove it")
        if live and generations > 1:
            reason = f"method.generations = {generations} needs the stored logits of earlier students"
            hint = "Use logits.mode=stored" + (" and remove data.augment" if augment else "")
            raise ConfigError("logits.mode", "live", reason, hint)

    def is_live(self, command: str) -> bool:
        """Whether the trainings of a command ("distill", "sweep") query the teachers, and do not read stored logits."""
        distils = command == "sweep" or (command == "distill" and self.method.distils)
        return self.logits.mode == "live" and distils

    @property
    def method_label(self) -> str:
        """The method's short name. Values have no temperature, so the presets' is not a setting that differs."""
        return self.method.label_without("temperature") if self.task.predicts_values else self.method.label

    @property
    def experiment(self) -> str:
        """The name of its experiment in MLflow."""
        return self.tracking.experiment or self.name

    def training_sections(self) -> dict[str, tuple[TrainingConfig, int]]:
        """By key, the training settings of every section, with defaults applied, and their number of workers."""
        own = self.training_of(self.student.training, "student.training")
        sections = {"training": (self.training, 1), "student.training": (own, self.student.workers)}
        for teacher in self.teachers:
            if teacher.recipe:
                key = f"teachers.{teacher.name}.recipe.training"
                sections[key] = (self.training_of(teacher.recipe.training, key), 1)
        return sections

    def training_of(self, changes: dict[str, Any], key: str) -> TrainingConfig:
        """The training section with one model's own values.

        changes: the values that differ.
        key: where they are in the YAML, for errors.
        """
        base = self.training.model_dump()
        if {"steps", "epochs"} & changes.keys():
            base |= {"steps": None, "epochs": None}
        try:
            return TrainingConfig.model_validate(base | changes)
        except ValidationError as error:
            raise user_error(error, TrainingConfig, key) from None

    def task_of(self, member: TeacherConfig | StudentConfig) -> TaskConfig:
        """The task section for one model: with its own max_length, or else the section itself."""
        if member.max_length in (None, self.task.max_length):
            return self.task
        return self.task.model_copy(update={"max_length": member.max_length})

    @property
    def folder(self) -> Path:
        """The folder for this experiment's results."""
        return Path(self.output) / self.name

    @property
    def store(self) -> Path:
        """The folder that experiments share: encoded data, trained models and logits, by fingerprint."""
        return Path(self.output) / STORE


class PredictConfig(Section):
    """What `raykd predict` reads: a model, and rows that need no labels.

    task: values of the section `task`; the model's folder knows the others.
    """

    model: ModelConfig = Field(description="a folder or hub id")
    data: DataConfig = Field(description="the rows: those of the split `test`")
    task: dict[str, Any] = Field(default_factory=dict, description="as in a job's YAML")
