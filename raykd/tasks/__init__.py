"""The tasks by their name in the config, one module each."""

from collections.abc import Sequence
from typing import Any

from raykd.common.dotted import is_dotted
from raykd.tasks.common import NO_LABEL, Batch, Evaluation, Task
from raykd.tasks.image_classification import ImageClassification
from raykd.tasks.multi_label_classification import MultiLabelClassification
from raykd.tasks.multiple_choice import MultipleChoice
from raykd.tasks.own import own_task
from raykd.tasks.question_answering import QuestionAnswering
from raykd.tasks.regression import Regression
from raykd.tasks.text_classification import TextClassification
from raykd.tasks.text_generation import TextGeneration
from raykd.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "image-classification": ImageClassification,
    "text-classification": TextClassification,
    "multi-label-classification": MultiLabelClassification,
    "multiple-choice": MultipleChoice,
    "regression": Regression,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "text-generation": TextGeneration,
}


for _name, _task in TASKS.items():
    _task.kind = _name


def make_task(settings: Any, label_names: Sequence[str] = ()) -> Task:
    """The task of a section `task`. Raises ConfigError if it is an unusable one of the user's own."""
    if is_dotted(settings.type):
        settings.code.install()
    return task_class(settings.type)(settings, label_names)


def task_class(name: str) -> type[Task]:
    """name: in `TASKS`, or `module:name` of the user's own, whose code is installed. Raises ConfigError."""
    return own_task(name) if is_dotted(name) else TASKS[name]


__all__ = [
    "NO_LABEL",
    "TASKS",
    "Batch",
    "Evaluation",
    "ImageClassification",
    "MultiLabelClassification",
    "MultipleChoice",
    "QuestionAnswering",
    "Regression",
    "Task",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "make_task",
    "task_class",
]
