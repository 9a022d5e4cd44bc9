"""Checks whether given teachers are fine-tuned for this task, and finds the order of their classes."""

import logging
from collections.abc import Mapping

from raykd.common.errors import ConfigError
from raykd.config.schema import Config, TeacherConfig
from raykd.data.class_names import are_numerals, class_order, some
from raykd.models.configs import OTHER_PROBLEMS
from raykd.models.opened import OpenedModel
from raykd.tasks import Task

log = logging.getLogger(__name__)


def check_given_teachers(config: Config, task: Task, models: Mapping[str, OpenedModel]) -> dict[str, tuple[int, ...]]:
    """Raise ConfigError if a teacher without a recipe is not a checkpoint fine-tuned for this task.

    models: the available models, by key.

    Returns, by the same keys, (classes,) the position of each of the task's classes among the teacher's outputs. Only
    for teachers whose classes are in another order than the task's.
    """
    orders: dict[str, tuple[int, ...]] = {}
    named: dict[str, list[str]] = {}
    for teacher in config.teachers:
        key = f"teachers.{teacher.name}.model"
        if teacher.recipe is not None or key not in models:
            continue
        if not models[key].is_fine_tuned:
            raise ConfigError(
                key,
                models[key].source,
                f"it is not a checkpoint fine-tuned for {config.task.type}, and it has no recipe",
                f"Give a fine-tuned checkpoint, or add `recipe: {{}}` to train {teacher.name} here",
            )
        if teacher.labels and not task.named_classes:
            value, reason = ", ".join(teacher.labels), f"{config.task.type.replace('-', ' ')} has no named classes"
            raise ConfigError(f"teachers.{teacher.name}.labels", value, reason, "Remove it")
        _check_problem(teacher, models[key], task, key)
        if task.predicts_values and (outputs := models[key].saved_classes) != 1:
            reason = f"it has {outputs} outputs, and {config.task.type} needs a model with 1 (num_labels: 1)"
            hint = f"Use a teacher of this task, or add `recipe: {{}}` to train {teacher.name} here"
            raise ConfigError(key, models[key].source, reason, hint)
        if task.label_names:
            order = _order_of_classes(teacher, models[key], task, key, named)
            if order != tuple(range(len(order))):
                orders[key] = order
    return orders


def _check_problem(teacher: TeacherConfig, model: OpenedModel, task: Task, key: str) -> None:
    """Raise ConfigError if its config says that its logits mean something else (of a softmax, a sigmoid or a value)."""
    problem = model.saved_config.get("problem_type")
    wrong = problem in OTHER_PROBLEMS or (task.problem_type is not None and problem is not None)
    if wrong and problem != task.problem_type:
        raise ConfigError(
            key,
            teacher.model.pretrained,
            f"it was trained for another problem (problem_type {problem} in its config.json)",
            f"Add `recipe: {{}}` to train {teacher.name} here, or use a teacher of this task",
        )


def _order_of_classes(
    teacher: TeacherConfig, model: OpenedModel, task: Task, key: str, named: dict[str, list[str]]
) -> tuple[int, ...]:
    """The position of each of the task's classes among the teacher's outputs.

    named: class names of earlier teachers that cannot be compared with the task's, by teacher. This one's are added.
    """
    theirs, ours = _class_names(teacher, model), list(task.label_names)
    where, value = key, teacher.model.pretrained
    if teacher.labels is not None:
        where, value = f"teachers.{teacher.name}.labels", ", ".join(teacher.labels)
    if len(theirs) != len(ours):
        raise ConfigError(
            where,
            value,
            f"it has {len(theirs)} labels ({some(theirs)}), the task {len(ours)} ({some(ours)})",
            "Use a teacher of this task, or correct task.labels",
        )
    if (order := class_order(theirs, ours)) is not None:
        return order
    fix = f"Set teachers.{teacher.name}.labels to the task's names in the order of this teacher's outputs"
    in_order = tuple(range(len(ours)))
    default = [f"LABEL_{i}" for i in in_order]
    numbers = [str(i) for i in in_order]
    if teacher.labels is None and theirs in (default, numbers):  # its labels have no names
        if are_numerals(ours) and ours != sorted(ours, key=float):
            reason = f"it does not name its labels, and the task's ({some(ours)}) are not in the order of their numbers"
            raise ConfigError(where, value, reason, fix)
        if task.label_lists and not are_numerals(ours):  # answers with several labels show no other order
            text = "teachers.%s: its outputs have no names, so they are taken to be in the task's order: %s"
            log.warning(text, teacher.name, some(ours))
        return in_order
    if teacher.labels is None and sorted(theirs) == sorted(default):
        # LABEL_1 is class 1 where classes are numbers; with other names nothing says what it is.
        if (order := class_order([name.removeprefix("LABEL_") for name in theirs], ours)) is not None:
            return order
        raise ConfigError(where, value, f"its labels are numbered in another order ({some(theirs)})", fix)
    whose = "the task"
    # Where the data only numbers its classes, teachers can be compared with one another.
    if teacher.labels is None and ours in (numbers, ["False", "True"]):
        other = next(iter(named), None)
        named[teacher.name] = theirs
        if other is None or class_order(theirs, named[other]) == in_order:
            return in_order
        whose, ours = f"teacher {other}", named[other]
        fix = "Name the task's classes in task.labels, in the order of the data's numbers"
    what = "another order of labels" if class_order(theirs, ours) else "other labels"
    raise ConfigError(where, value, f"it has {what} ({some(theirs)}) than {whose} ({some(ours)})", fix)


def _class_names(teacher: TeacherConfig, model: OpenedModel) -> list[str]:
    """A given teacher's classes in the order of its outputs, as the user names them, or else as its config does."""
    if teacher.labels is not None:
        return teacher.labels
    saved = model.saved_config
    if not (names := saved.get("id2label")):  # transformers' default
        return [f"LABEL_{i}" for i in range(saved.get("num_labels") or saved.get("_num_labels") or 2)]
    return [str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
