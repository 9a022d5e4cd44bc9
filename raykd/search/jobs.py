"""Turns a setting into a training job, and holds what all trainings of a sweep have in common."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import count, islice

from raykd import __version__
from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint
from raykd.config.schema import Config, ModelConfig
from raykd.data.class_names import listed
from raykd.models.loading import weight_shapes
from raykd.models.opened import OpenedModel
from raykd.plan.job import ARITHMETIC, Job
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import student_jobs
from raykd.search.journal import Part
from raykd.search.space import SearchArm, Setting, Space
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.results import Scored
from raykd.tracking.tags import Tag


class TrialJobs:
    """The trainings of a sweep. teachers: empty until they are trained."""

    def __init__(self, space: Space, prepared: Prepared) -> None:
        self.space, self.config, self.prepared = space, space.config, prepared
        self.task = prepared.task
        own = space.config.training_of(space.config.student.training, "student.training")
        self.metric = space.search.metric or own.select or self.task.primary_metric
        self.teachers: list[ServedTeacher] = []
        self._prepared = {self._model(space.config): prepared}
        for arm in space.arms:  # check every model that a trial can start from before the first trial
            for parameter in space.parameters:
                if parameter.key.startswith("student.model") and space.uses(arm, parameter.key):
                    for value in parameter.values:
                        self._check_model(parameter.key, value, space.config_of(arm, {parameter.key: value}, 0))

    def job(self, arm: SearchArm, setting: Setting, seed: int, name: str, keep_model: bool) -> Job:
        """One training. Raises ConfigError if the setting's values are invalid together.

        keep_model: whether its model is kept after the training.
        """
        config = self.space.config_of(arm, setting, seed)
        [job] = student_jobs(config, self._prepare(config), config.method, self.teachers)
        return dataclasses.replace(
            job, name=name, keep_model=keep_model, metadata={**job.metadata, "title": f"{config.name}: {name}"}
        )

    @cached_property
    def weights(self) -> dict[str, float]:
        """The number of weights of each model that a trial can start from, by `Job.model_digest`.

        1 if there is only one model; infinite if the model's own code cannot build it without loading weights.
        """
        models = {prepared.student.model.start_digest: prepared.student.model for prepared in self._prepared.values()}
        return {digest: 1 if len(models) == 1 else _weights(model) for digest, model in models.items()}

    def parts(self) -> dict[str, Part]:
        """What all trainings depend on besides the config: data, models and arithmetic, identified by content.

        For a teacher that is trained here it is the model that it starts from, since its weights do not exist yet.
        """
        splits = self.prepared.splits
        parts = {f"data.{name}": Part(getattr(self.config.data, name), split.digest) for name, split in splits.items()}
        parts["task.labels"] = Part(listed(self.task.label_names), fingerprint(self.task.label_names))
        members = {f"teachers.{name}.model": member for name, member in self.prepared.teachers.items()}
        for prepared in self._prepared.values():  # the student's own model comes first
            own = prepared is self.prepared
            key = "student.model" if own else f"student.model {_model_name(prepared.student.model.spec)}"
            members[key] = prepared.student
        for key, member in members.items():
            parts[key] = Part(_model_name(member.model.spec), member.model.digest)
            where = member.model.spec.tokenizer_source or _model_name(member.model.spec)
            parts[f"{key}.tokenizer"] = Part(where, member.model.processor_digest)
        preprocessing = repr(sorted(self.task.identity().items()))
        parts["task"] = Part(self.config.task.type, fingerprint(preprocessing))
        parts |= {f"code of {path}": Part(path, code.digest) for path, code in self.prepared.code.items()}
        parts["raykd"] = Part(f"{__version__} (arithmetic {ARITHMETIC})", str(ARITHMETIC))
        return parts

    def fresh_seeds(self) -> list[int]:
        """The seeds for training each arm's best setting again.

        They exclude the trials' seed, and the seed of a teacher that starts from a student's model: fine-tuning with
        it would reproduce that teacher.
        """
        models = {prepared.student.model.digest for prepared in self._prepared.values()}
        used = {self.config.student.seeds[0]}
        for teacher in self.config.teachers:
            if teacher.recipe and self.prepared.teachers[teacher.name].model.digest in models:
                used.add(teacher.recipe.seed)
        return list(islice((seed for seed in count(1) if seed not in used), self.config.search.seeds))

    def tags(self) -> dict[str, str]:
        return {Tag.METRIC: self.metric, Tag.ALGORITHM: self.config.search.algorithm}

    def without_controls(self, scored: Sequence[Scored]) -> list[Scored]:
        """All but the students that are controls."""
        methods = {arm.name for arm in self.space.arms if not arm.control}
        return [run for run in scored if run.role != "student" or run.details["group"] in methods]

    def _check_model(self, key: str, value: object, config: Config) -> None:
        """Raise a ConfigError that names the search space if a trial cannot start from the model."""
        try:
            self._prepare(config)
        except ConfigError as error:
            if not error.key.startswith("student.model"):
                raise
            raise type(error)(f"search.space.{key}", value, error.reason, error.hint) from error.__cause__

    @staticmethod
    def arm_tags(arm: SearchArm) -> dict[str, str]:
        return {Tag.ARM: arm.name, Tag.CONTROL: str(arm.control).lower()}

    @staticmethod
    def _model(config: Config) -> str:
        return config.student.model.model_dump_json()

    def _prepare(self, config: Config) -> Prepared:
        key = self._model(config)
        if key not in self._prepared:
            self._prepared[key] = prepare(config)
        return self._prepared[key]


def _weights(model: OpenedModel) -> float:
    try:
        expected, _, _ = weight_shapes(model)
    except ConfigError:  # it has been loaded before, so it is no mistake in the config
        return math.inf
    return sum(math.prod(shape) for shape in expected.values())


def _model_name(model: ModelConfig) -> str:
    return model.pretrained or str(model.config)
