"""A given teacher's classes go by name: put into the task's order where it serves, in the store as for students."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from taught import fill_here
from tiny import bert, electra, reviews_job
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.config.load import build, override
from raykd.config.schema import Config, ModelConfig, TaskConfig
from raykd.data.class_names import class_order, match_names
from raykd.experiment.scoring import stored_logits
from raykd.models.loading import load_model, load_whole
from raykd.models.opened import OpenedModel, open_model
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher
from raykd.tasks import make_task
from raykd.teachers.serving import ServedTeacher, TeacherModel

ORDER = [2, 0, 1]  # the turned teacher's output i is the straight one's ORDER[i]


def save_teacher(folder: Path, names: list[str], order: list[int]) -> None:
    """The same weights each time; output i is the original's output order[i]."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(**electra(), id2label=dict(enumerate(names)))
    )
    head = model.classifier.out_proj
    torch.nn.init.normal_(head.weight)
    head.weight.data, head.bias.data = head.weight.data[order].clone(), torch.arange(3.0)[order]
    model.save_pretrained(folder)


def two_teachers(folder: Path, values: list[Any], straight: list[str], turned: list[str], **changes: Any):
    """A job over rows of the labels `values`, in turn, with one teacher in two orders of its classes."""
    tree = reviews_job(folder)
    path = folder / "data" / "train.parquet"
    table = pq.read_table(path).to_pydict()
    texts = table["text"]
    pq.write_table(pa.table({"text": texts, "label": [values[i % 3] for i in range(len(texts))]}), path)
    tokenizer = str(folder / "tokenizer")
    teachers = []
    for name, names, order in (("straight", straight, [0, 1, 2]), ("turned", turned, ORDER)):
        save_teacher(folder / name, names, order)
        teachers.append({"name": name, "model": {"pretrained": str(folder / name), "tokenizer": tokenizer}})
    config = build(override({**tree, "teachers": teachers}, {"task.labels": None, **changes}))
    prepared = prepare(config)
    return config, prepared, [served_teacher(config, prepared, t, [], "float32") for t in config.teachers]


def stored(made: tuple[Config, Prepared, list[ServedTeacher]]) -> np.ndarray:
    """(M, rows, C): what the store holds of the test rows."""
    config, prepared, served = made
    for teacher, one in zip(config.teachers, served, strict=True):
        fill_here(config, prepared, teacher, one)
    logits = stored_logits(prepared, served, "test", config.store / "logits")
    return logits[np.arange(len(logits))][:, :, 0].astype(np.float32)


WORDS = ["bad", "fair", "good"]


@pytest.mark.parametrize(
    ("values", "straight", "turned", "changes", "names"),
    [
        (WORDS, WORDS, ["good", "bad", "fair"], {}, WORDS),
        (WORDS, ["BAD", "FAIR", "GOOD"], ["Good", "Bad", "Fair"], {}, WORDS),
        (["2", "10", "1"], ["1", "2", "10"], ["10", "1", "2"], {}, ["1", "2", "10"]),
        ([0, 1, 2], ["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_2", "LABEL_0", "LABEL_1"], {}, ["0", "1", "2"]),
        ([0, 1, 2], ["0", "1", "2"], ["2", "0", "1"], {}, ["0", "1", "2"]),
        (
            WORDS,
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            {"teachers.turned.labels": ["good", "bad", "fair"]},
            WORDS,
        ),
        ([0, 1, 2], ["x", "y", "z"], ["z", "x", "y"], {"task.labels": ["x", "y", "z"]}, ["x", "y", "z"]),
    ],
    ids=["words", "case", "numerals", "LABEL_i", "numbers", "as the user names them", "numbers that the task names"],
)
def test_a_teacher_of_another_order_gives_the_same_logits(tmp_path, values, straight, turned, changes, names):
    made = two_teachers(tmp_path, values, straight, turned, **changes)
    assert made[1].task.label_names == tuple(names)
    one, two = stored(made)
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one, axis=1).ravel()) > 3, "the classes differ"


def test_live_answers_are_in_the_tasks_order_too(tmp_path):
    _, prepared, served = two_teachers(tmp_path, WORDS, WORDS, ["good", "bad", "fair"])
    rows = prepared.student.splits["test"].open()[:8]
    one, two = (TeacherModel(teacher).answer(rows, np.full(8, -1)) for teacher in served)
    np.testing.assert_array_equal(one, two)


def test_the_order_is_part_of_the_logits_key(tmp_path):
    """The same weights under other names are another teacher."""
    default = ["LABEL_0", "LABEL_1", "LABEL_2"]
    _, prepared, served = two_teachers(
        tmp_path, WORDS, default, default, **{"teachers.turned.labels": ["good", *WORDS[:2]]}
    )
    assert served[0].classes == ()
    assert served[1].classes == (1, 2, 0)
    assert prepared.student.classes == ()
    plain = dataclasses.replace(served[1], classes=())
    assert plain.key.fingerprint != served[1].key.fingerprint


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [
        (["b", "a"], ["a", "b"], (1, 0)),
        (["B", "A"], ["a", "b"], (1, 0)),
        (["A", "a", "B", "b"], ["b", "B", "a", "A"], (3, 2, 1, 0)),
        (["A", "a"], ["a", "b"], None),
        (["A", "b"], ["a", "A"], None),
        (["a", "a"], ["a", "b"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["a"], ["a", "b"], None),
    ],
)
def test_class_order(theirs, ours, found):
    assert class_order(theirs, ours) == found


def test_match_names():
    assert match_names(["b"], ["a", "b"]) == {"b": 1}
    assert match_names(["STRASSE"], ["weg", "straße"]) == {"STRASSE": 1}
    assert match_names(["a", "c"], ["a", "b"]) is None
    assert match_names(["B"], ["a", "b", "A"]) is None, "two of ours differ in case alone"
    assert match_names(["a", "A"], ["a", "b"]) is None, "two of theirs would be one"


def test_a_start_with_other_classes_gets_a_new_head(tmp_path):
    """Its head's rows would stand for other classes than those that it was trained for."""
    names = ["bad", "good"]
    task = make_task(TaskConfig(type="text-classification"), names)
    fresh = load_model(open_model(ModelConfig(config=bert(), tokenizer="none"), task, "m"), 3)
    fresh.save_pretrained(tmp_path / "start")

    def start(names: list[str], seed: int = 0) -> tuple[OpenedModel, dict[str, torch.Tensor]]:
        file = tmp_path / "start" / "config.json"
        named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        file.write_text(json.dumps(json.loads(file.read_text()) | named))
        spec = ModelConfig(pretrained=str(tmp_path / "start"), tokenizer="none")
        opened = open_model(spec, task, "student.model")
        return opened, load_model(opened, seed).state_dict()

    def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, weight in one.items() if torch.equal(weight, other[name])}

    saved = fresh.state_dict()
    for kept in (names, ["Bad", "Good"], ["LABEL_0", "LABEL_1"]):
        opened, weights = start(kept)
        assert equal(saved, weights) == saved.keys()
        assert opened.start_digest == opened.digest
    for other in (names[::-1], ["cat", "dog"]):
        opened, weights = start(other)
        assert saved.keys() - equal(saved, weights) == {"classifier.weight"}  # a bias starts at 0
        assert opened.start_digest != opened.digest
        assert equal(weights, start(other)[1]) == weights.keys()
        assert "classifier.weight" not in equal(weights, start(other, 1)[1])
        whole = load_whole(opened, None).state_dict()
        assert equal(saved, whole) == saved.keys(), "a teacher that is used as it is keeps its head"


def test_classes_of_a_timm_checkpoint(tmp_path):
    """Its config.json has them under other names: those of timm's own, or of transformers' wrapper for such models."""
    task = make_task(TaskConfig(type="image-classification"), ["bird", "cat", "dog"])

    def opened(**config: Any) -> OpenedModel:
        (tmp_path / "config.json").write_text(json.dumps({"num_features": 96} | config))
        (tmp_path / "model.safetensors").touch()
        return open_model(ModelConfig(pretrained=str(tmp_path)), task, "student.model")

    hub = opened(architecture="test_resnet", num_classes=10, pretrained_cfg={})
    assert (hub.saved_classes, hub.is_fine_tuned, hub.other_classes) == (10, True, [])
    body = opened(architecture="test_resnet", num_classes=0, pretrained_cfg={})
    assert not body.is_fine_tuned
    wrapper = {"model_type": "timm_wrapper", "architecture": "test_resnet", "num_classes": 3}
    wrapper["architectures"] = ["TimmWrapperForImageClassification"]
    saved = opened(**wrapper, label_names=["dog", "cat", "bird"])
    assert (saved.saved_classes, saved.is_fine_tuned) == (3, True)
    assert saved.other_classes == ["dog", "cat", "bird"]
    assert (saved.config.num_labels, saved.config.label_names) == (3, ["bird", "cat", "dog"]), "it is saved with ours"
    more = opened(**wrapper | {"num_classes": 4}, label_names=list("abcd"))
    assert (more.saved_classes, more.config.num_labels) == (4, 3)
