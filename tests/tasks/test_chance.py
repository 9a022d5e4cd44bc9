"""`Task.chance`: the score of a model that gives the best one answer to all examples."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from raykd.tasks.common import Task
from raykd.tasks.multi_label_classification import MultiLabelClassification
from raykd.tasks.question_answering import QuestionAnswering
from raykd.tasks.text_classification import TextClassification
from raykd.tasks.token_classification import TokenClassification

SETTINGS = SimpleNamespace(max_length=16, stride=4, max_answer_length=30)


def test_classification_is_the_most_common_labels_share():
    rows = Dataset.from_dict({"text": ["x"] * 5, "label": [2, 0, 2, 1, 2]})
    assert TextClassification(SETTINGS, ["a", "b", "c"]).chance(rows) == pytest.approx(0.6)


def test_multi_label_is_every_label_for_all_rows():
    """F1 of a label in both rows: 2 * 2 / 4; in one of two: 2 * 1 / 3; the third does not occur."""
    rows = Dataset.from_dict({"text": ["x", "y"], "labels": [[0], [0, 1]]})
    assert MultiLabelClassification(SETTINGS, ["a", "b", "c"]).chance(rows) == pytest.approx((1 + 2 / 3) / 2)


def test_questions_are_the_share_without_an_answer_in_percent():
    answers = [{"text": [], "answer_start": []}, {"text": ["x"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    rows = Dataset.from_dict({"id": ["1", "2", "3"], "context": ["x"] * 3, "answers": answers})
    assert QuestionAnswering(SETTINGS).chance(rows) == pytest.approx(200 / 3)


def test_no_entity_has_an_f1_of_0_and_other_tasks_need_not_know():
    rows = Dataset.from_dict({"tokens": [["x"]], "ner_tags": [[0]]})
    assert TokenClassification(SETTINGS, ["O"]).chance(rows) == 0
    assert Task(SETTINGS).chance(rows) is None
