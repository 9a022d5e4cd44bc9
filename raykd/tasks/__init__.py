"""The tasks by their name in the config, one module each."""

from collections.abc import Sequence
from typing import Any

from raykd.tasks.common import NO_LABEL, Batch, Evaluation, Task
from raykd.tasks.image_classification import ImageClassification
from raykd.tasks.multi_label_classification import MultiLabelClassification
from raykd.tasks.multiple_choice import MultipleChoice
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


def make_task(settings: Any, label_names: Sequence[str] = ()) -> Task:
    return TASKS[settings.type](settings, label_names)


__all__ = ["NO_LABEL", "TASKS", "Batch", "Evaluation", "Task", "make_task"]
