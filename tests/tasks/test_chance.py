"""`Task.chance`: the score of a model that gives the best one answer to all examples."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from raykd.tasks.chance import chances
from raykd.tasks.classification import macro_f1
from raykd.tasks.common import Task
from raykd.tasks.multi_label_classification import MultiLabelClassification
from raykd.tasks.question_answering import QuestionAnswering
from raykd.tasks.regression import Regression
from raykd.tasks.text_classification import TextClassification
from raykd.tasks.token_classification import TokenClassification
from raykd.tracking.chance import chance_tags, chances_from, is_at_chance

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


def test_rare_classes_that_are_found_are_not_chance():
    """50 of 1,000 rows are positive. 30 of them are found, with 40 false alarms: fewer right answers than the one
    answer "negative" has, but a macro F1 far above 1 / 2.
    """
    gold = np.repeat([1, 0], [50, 950])
    said = np.concatenate([np.repeat([1, 0], [30, 20]), np.repeat([1, 0], [40, 910])])
    task = TextClassification(SETTINGS, ["a", "b"])
    chance = chances(task, Dataset.from_dict({"text": ["x"] * 1000, "label": gold}))
    error = 0.5 / np.sqrt(1000)
    assert chance == {"accuracy": pytest.approx(0.95), "macro_f1": pytest.approx(0.5 + 2 * error)}
    found = {"accuracy": float((gold == said).mean()), "macro_f1": macro_f1(gold, said)}
    assert found["accuracy"] == pytest.approx(0.94)
    assert not is_at_chance(found, chance)
    constant = {"accuracy": 0.95, "macro_f1": macro_f1(gold, np.zeros(1000, int))}
    assert is_at_chance(constant, chance)
    assert not is_at_chance(found, {})


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.6, 0.3, 0.1), (0.31, *[0.03] * 23)])
@pytest.mark.parametrize("count", [200, 5000])
def test_answers_at_random_seldom_have_a_better_macro_f1(shares, count):
    """Drawn as often as the classes occur, they exceed it in about a fortieth of 2,000 draws; otherwise less often."""
    rng = np.random.default_rng(0)
    gold = rng.choice(len(shares), count, p=shares)
    task = TextClassification(SETTINGS, [str(i) for i in range(len(shares) + 1)])  # one class does not occur
    value = task.other_chances(Dataset.from_dict({"text": [""] * count, "label": gold}))["macro_f1"]
    assert 1 < value * len(shares) < 1 + 3 * np.sqrt(len(shares) / count)
    for drawn in (shares, *rng.dirichlet(np.ones(len(shares)), 3)):
        above = [macro_f1(gold, rng.choice(len(shares), count, p=drawn)) > value for _ in range(2000)]
        assert np.mean(above) < 0.05


def test_an_own_metric_has_no_inherited_chance():
    class ByError(Regression):
        primary_metric = "mse"

    class Known(ByError):
        def chance(self, rows):
            return 2.0

    class Two:
        def chance(self, rows):
            return 2.0

    class Mixed(Two, Regression):
        pass

    rows = Dataset.from_dict({"text": ["x"], "label": [1.0]})
    assert chances(Regression(SETTINGS), rows) == {"pearson": 0.0}
    assert chances(ByError(SETTINGS), rows) == {}
    assert chances(Known(SETTINGS), rows) == {"mse": 2.0}
    assert chances(Mixed(SETTINGS), rows) == {"pearson": 2.0}


def test_tags_say_all_of_it():
    chance = {"validation": {}, "test": {"accuracy": 0.1 + 0.2, "macro_f1": 1 / 3}}
    tags = chance_tags(chance, "accuracy")
    assert {split: chances_from(tags, split, "accuracy") for split in chance} == chance
    assert chances_from({"raykd.chance.test": "0.5"}, "test", "accuracy") == {"accuracy": 0.5}  # an older raykd's
