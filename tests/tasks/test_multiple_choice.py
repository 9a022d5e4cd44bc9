"""Multiple choice: the inputs that a model gets, the forms that its data come in, and its scores by hand."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import electra, plots_job, save_bytes_tokenizer, save_tokenizer
from transformers import AutoConfig, AutoModelForMultipleChoice, AutoTokenizer

from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.config.schema import DataConfig, ModelConfig, TaskConfig
from raykd.data.groups import groups_of
from raykd.data.loading import load_splits
from raykd.predictions.predictor import Predictor
from raykd.tasks import make_task
from raykd.tasks.common import RowError

TASK = make_task(TaskConfig(type="multiple-choice", max_length=12))
ROWS = {
    "question": ["which film ?", "who lives there ?"],
    "choices": [["good film", "bad", "the awful plot"], ["anna", "ben"]],
    "label": [2, 0],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = AutoConfig.for_model(**electra(), initializer_range=1.0)
    return AutoModelForMultipleChoice.from_config(config).eval()


@pytest.mark.parametrize("context", [None, "the good actor lives in rome"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_are_those_of_each_choice_alone(tokenizer, model, context, side):
    rows = ROWS | ({"context": [context] * 2} if context else {})
    tokenizer.padding_side = side
    encoded = TASK.encode(rows, tokenizer, True)
    batch = TASK.collate(encoded, tokenizer)
    assert batch.mask.tolist() == [[[True, True, True]], [[True, True, False]]]
    assert batch.labels.tolist() == [[2], [0]]
    assert TASK.shapes(encoded).tolist() == [[1, 3], [1, 2]]
    with torch.inference_mode():
        found = TASK.decisions(model(**batch.inputs), batch)
        for row, choices in enumerate(ROWS["choices"]):
            for number, choice in enumerate(choices):
                question = ROWS["question"][row]
                pair = (context, f"{question} {choice}") if context else (question, choice)
                alone = tokenizer(*pair, truncation=True, max_length=12, return_tensors="pt")
                [[logit]] = model(**{name: values[None] for name, values in alone.items()}).logits
                if side == "right":  # left padding moves absolute positions, so it is another input to this model
                    torch.testing.assert_close(found[row, 0, number], logit, rtol=1e-4, atol=1e-4)
                at = batch.inputs["attention_mask"][row, number].bool()
                assert batch.inputs["input_ids"][row, number][at].tolist() == alone["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("multiple-choice", {"question": ["a", ""], "choices": [["b", "c"], ["d", ""]]}),
        ("text-classification", {"text": ["a", ""]}),
    ],
)
def test_a_text_without_a_token_is_refused_by_row(tmp_path, kind, rows):
    """A tokenizer of bytes adds none of its own, and no model has an answer to nothing."""
    plain = AutoTokenizer.from_pretrained(save_bytes_tokenizer(tmp_path))
    made = make_task(TaskConfig(type=kind), ["a", "b"] if kind == "text-classification" else ())
    with pytest.raises(RowError, match="no token") as refused:
        made.encode(rows, plain, False)
    assert refused.value.position == 1


def test_scores_by_hand():
    rows = Dataset.from_dict(ROWS)
    logits = [np.log([[0.5, 0.2, 0.3]]), np.log([[0.9, 0.1]])]
    encoded = {"labels": [[2], [0]]}
    found = TASK.evaluate(TASK.summarize(logits, encoded), rows, rows)
    assert found.metrics["accuracy"] == 0.5
    assert found.metrics["nll"] == pytest.approx(-(math.log(0.3) + math.log(0.9)) / 2)
    assert found.metrics["ece"] == pytest.approx((0.5 + 0.1) / 2)
    assert found.scores.tolist() == [0, 1]
    assert [(row["prediction"], row["label"]) for row in found.predictions] == [(0, 2), (0, 0)]
    first, second = TASK.predictions(logits, rows, rows, {})
    assert (first["prediction"], first["choice"], second["prediction"]) == ("good film", 0, "anna")
    assert first["probabilities"] == pytest.approx([0.5, 0.2, 0.3])
    assert TASK.chance(Dataset.from_dict({"label": [0, 2, 2, 1]})) == 0.5


def read(tmp_path, rows, columns):
    """The choices and labels of train, written as JSON lines. The other splits have equal rows."""
    path, n = tmp_path / "rows.jsonl", len(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    parts = {"train": f"train[:{n}]", "validation": f"train[{n}:{2 * n}]", "test": f"train[{2 * n}:]"}
    tree = plots_job(tmp_path) | {"data": {"source": str(path), "columns": columns, **parts}}
    found = load_splits(build(tree), TASK)["train"].rows
    return found["choices"][:], found["label"][:]


@pytest.mark.parametrize(
    ("contexts", "groups"),
    [
        (["x", "x", "y", ""], ["x", "x", "y", "row 3"]),  # a row without one is alone
        (["", "", "x", ""], None),
        (["read this"] * 4, None),  # an introduction
        ([""] * 4, None),
    ],
)
def test_questions_on_one_passage_are_a_group(tmp_path, contexts, groups, caplog):
    path = tmp_path / "rows.jsonl"
    row = {"choices": ["b", "c"], "label": 0}
    rows = [row | {"question": f"{i}?", "context": context} for i, context in enumerate(contexts * 3)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    cut = {"train": "train[:4]", "validation": "train[4:8]", "test": "train[8:]"}
    with caplog.at_level("WARNING", "raykd"):
        splits = load_splits(build(plots_job(tmp_path) | {"data": {"source": str(path), **cut}}), TASK)
    assert groups_of(splits["test"], TASK) == (groups and tuple(groups))
    shared = [r.getMessage() for r in caplog.records if "in both" in r.getMessage()]
    assert shared == ([] if groups is None else [
        f"data: 2 contexts are in both {a} and {b}. Split the data by context"
        for a, b in (("train", "validation"), ("train", "test"), ("validation", "test"))
    ])  # fmt: skip


LISTS = [["a b", "c", "d"], ["e", "f", "g"]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 2], [0, 2]),
        ([1, 3], [0, 2]),  # counted from 1
        ([2.0, 1.0], [2, 1]),
        (["0", "2"], [0, 2]),
        (["1", "3"], [0, 2]),
        (["A", "C"], [0, 2]),
        (["b", "c"], [1, 2]),
        (["a b", "g"], [0, 2]),
    ],
)
def test_labels_are_numbers_letters_or_the_choice(tmp_path, labels, expected):
    rows = [{"q": f"q {i}", "ends": LISTS[i], "y": label} for i, label in enumerate(labels)]
    assert read(tmp_path, rows, {"question": "q", "choices": "ends", "label": "y"}) == (LISTS, expected)


@pytest.mark.parametrize(
    ("labels", "warned"),
    [([1, 2], True), (["1", "2"], True), ([0, 2], False), ([1, 3], False), (["B", "C"], False), (["c", "e"], False)],
)
def test_numbers_that_may_count_from_0_or_from_1_are_a_warning(tmp_path, labels, warned, caplog):
    rows = [{"question": f"q {i}", "choices": LISTS[i], "label": label} for i, label in enumerate(labels)]
    with caplog.at_level("WARNING", "raykd"):
        read(tmp_path, rows, {})
    assert any(record.name == "raykd.data.choices" for record in caplog.records) == warned


def test_a_letter_behind_the_choices_is_not_counted_from_1(tmp_path):
    rows = [{"question": f"q {i}", "choices": LISTS[i], "label": label} for i, label in enumerate("BD")]
    with pytest.raises(ConfigError) as error:
        read(tmp_path, rows, {})
    assert (error.value.key, error.value.value) == ("data.train", "D")


def test_choices_in_several_columns_and_with_labels_of_their_own(tmp_path):
    rows = [
        {"question": "q", "a": "x", "b": "y", "c": "z", "label": 2},
        {"question": "r", "a": "x", "b": "y", "label": 0},
    ]
    assert read(tmp_path, rows, {"choices": ["a", "b", "c"]}) == ([["x", "y", "z"], ["x", "y"]], [2, 0])
    columns = {"label": "answerKey"}
    texts, names = [["x", "y"], ["z", "x", "y"]], [["A", "B"], ["1", "2", "3"]]
    arc = [{"text": t, "label": n} for t, n in zip(texts, names, strict=True)]
    rows = [{"question": f"q {i}", "choices": arc[i], "answerKey": key} for i, key in enumerate(("B", "3"))]
    assert read(tmp_path, rows, columns) == (texts, [1, 2])
    for row in rows:
        row["choices"] = [{"label": n, "text": t} for t, n in zip(*row["choices"].values(), strict=True)]
    assert read(tmp_path, rows, columns) == (texts, [1, 2])


ROW = {"question": "q", "choices": ["x", "y"], "label": 0}


@pytest.mark.parametrize(
    ("row", "columns", "key", "parts"),
    [
        ({"choices": ["x"]}, {}, "data.train", ["row 1", "1 choice"]),
        ({"choices": ["x", ""]}, {}, "data.train", ["row 1", "empty"]),
        ({"label": 7}, {}, "data.train", ["7", "row 1", "2 choices"]),
        ({"label": -1}, {}, "data.train", ["-1", "row 1", "public"]),
        ({"label": None}, {}, "data.train", ["row 1", "no label"]),
        ({}, {"choices": ["question", "end"]}, "data.columns.choices", ["end", "question"]),
        ({}, {"choices": "question", "question": "choices"}, "data.columns.question", ["choices", "text"]),
        ({}, {"question": ["choices", "label"]}, "data.columns.question", ["one column"]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_refused(tmp_path, row, columns, key, parts):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, [ROW, ROW | row], columns)
    assert error.value.key == key
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_text_that_is_no_choice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"row 1.*x, y"):
        read(tmp_path, [ROW | {"label": "x"}, ROW | {"label": "other"}], {})
    struct = {"text": ["x", "y"], "label": ["A", "B"]}
    with pytest.raises(ConfigError, match=r"row 1.*A, B"):
        read(tmp_path, [ROW | {"choices": struct, "label": "A"}, ROW | {"choices": struct, "label": ""}], {})


def test_a_list_of_columns_is_for_choices_alone():
    assert DataConfig(source="x", columns={"choices": ["a", "b"]}).column("choices") == "a, b"


def test_a_saved_model_predicts_rows_of_other_columns(tmp_path, model):
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    predictor = Predictor(ModelConfig(pretrained=str(tmp_path)))
    assert predictor.task.auto_model == "AutoModelForMultipleChoice"
    frame = Dataset.from_dict({"q": ["which film ?"] * 2, "one": ["good", "bad"], "two": ["bad", "good"]})
    rows = predictor.inputs(frame, {"question": "q", "choices": ["one", "two"]})
    [(_, (first, second))] = predictor.predict(rows)
    assert first["prediction"] == second["prediction"] in ("good", "bad")
    assert first["choice"] == 1 - second["choice"]
    with pytest.raises(ConfigError, match="three"):
        predictor.inputs(frame, {"question": "q", "choices": ["one", "three"]})
