"""Token classification: words, tags, windows, entities; trained from the store, by two workers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from scored import evaluate
from seqeval.metrics import f1_score, precision_score, recall_score
from taught import curve, train_and_fill
from tiny import bert, electra, entities_job, save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from two_workers import train_by_two

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import DataConfig, ModelConfig, TaskConfig
from raykd.data.labels import number_labels
from raykd.experiment.scoring import stored_logits
from raykd.logits import LogitStore
from raykd.models.inputs import input_columns
from raykd.models.opened import open_model
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs
from raykd.tasks import NO_LABEL, make_task
from raykd.teachers.requests import RowsAnswer, pack, unpack
from raykd.teachers.serving import TeacherModel
from raykd.training.events import from_json
from raykd.training.loop import train

TAGS = ["O", "B-location", "I-location", "B-person", "I-person"]


def task(max_length=16, labels=TAGS):
    return make_task(TaskConfig(type="token-classification", max_length=max_length), labels)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = save_tokenizer(tmp_path_factory.mktemp("words"), ["##s", "##ly"])
    return AutoTokenizer.from_pretrained(folder)


def encode(rows, tokenizer, max_length=16, labelled=True):
    return task(max_length).encode(rows, tokenizer, labelled)


def test_a_decision_is_a_word_at_its_first_sub_word(tokenizer):
    found = encode({"tokens": [["films", "anna", "badly", "in"]], "ner_tags": [[0, 3, 0, 1]]}, tokenizer)
    assert tokenizer.convert_ids_to_tokens(found["input_ids"][0])[1:-1] == ["film", "##s", "anna", "bad", "##ly", "in"]
    assert found["word_starts"] == [[1, 3, 4, 6]]
    assert found["labels"] == [[0, 3, 0, 1]]
    assert task().shapes(found).tolist() == [[4, 5]]


@pytest.mark.parametrize("kind", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_a_byte_level_tokenizer_reads_words_as_within_a_text(tmp_path, kind):
    """transformers 4 refused to split words without their spaces, 5 does it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(["EU rejects German call", "the EU rejects"], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    names = {"tokenizer_class": kind, "pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"bos_token": "<s>"}))
    spec = ModelConfig(config=bert() | {"vocab_size": 400}, tokenizer=str(tmp_path))
    words = {"tokens": [["EU", "rejects", "German"]], "ner_tags": [[0, 3, 0]]}
    opened = open_model(spec, task(), "student.model").processor
    opened.save_pretrained(tmp_path / "saved")
    for loaded in (opened, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        found = encode(words, loaded)
        tokens = [token for token in loaded.convert_ids_to_tokens(found["input_ids"][0]) if token not in special]
        assert tokens == made.encode(" EU rejects German").tokens
        assert found["decisions"] == [3]


def test_a_long_row_is_cut_between_words_and_loses_none(tokenizer):
    words = ["films", "bad"] * 10  # 30 tokens, of which 6 have room
    found = encode({"tokens": [["anna"], words], "ner_tags": [[3], list(range(5)) * 4]}, tokenizer, 8)
    assert found["source"] == [0] + [1] * 5
    assert found["window"] == [0, 0, 1, 2, 3, 4]
    assert found["first_word"] == [0, 0, 4, 8, 12, 16]
    assert [tag for tags in found["labels"][1:] for tag in tags] == list(range(5)) * 4
    assert max(found["length"]) == 8


def test_every_word_is_a_decision(tokenizer):
    """Also one that the tokenizer drops, and one that is longer than a row."""
    found = encode({"tokens": [["", "anna", "films" + "s" * 30]]}, tokenizer, 8, labelled=False)
    assert [len(starts) for starts in found["word_starts"]] == found["decisions"]
    assert sum(found["decisions"]) == 3
    assert found["labels"][0][0] == NO_LABEL


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_reads_each_word_where_it_is(tokenizer, side):
    tokenizer.padding_side = side
    rows = {"tokens": [["films", "anna"], ["in"], ["a", "film", "in", "rome"]], "ner_tags": [[0, 3], [0], [0, 0, 0, 1]]}
    batch = task().collate(encode(rows, tokenizer), tokenizer)
    tokenizer.padding_side = "right"
    ids = batch.inputs["input_ids"]
    logits = torch.nn.functional.one_hot(ids, 128).float()
    read = task().decisions(type("Output", (), {"logits": logits}), batch).argmax(-1)
    expected = ["film", "anna", "in", "a", "film", "in", "rome"]
    assert tokenizer.convert_ids_to_tokens(read[batch.mask.any(-1)]) == expected
    assert batch.labels.tolist() == [[0, 3, -100, -100], [0, -100, -100, -100], [0, 0, 0, 1]]
    assert batch.mask.shape == (3, 4, 5)
    assert batch.mask.sum() == 7 * 5


GOLD = [["B-person", "I-person", "O", "B-location"], ["O", "O"], ["B-location", "B-location", "I-location"], ["O"]]
SAID = [["B-person", "O", "O", "B-location"], ["O", "I-person"], ["B-location", "I-location", "I-location"], ["O"]]


def test_entities_are_scored_as_seqeval_scores_them():
    made = task()
    numbers = [[TAGS.index(tag) for tag in tags] for tags in GOLD]
    logits = [np.eye(5)[[TAGS.index(tag) for tag in tags]] * 9 for tags in SAID]
    encoded = Dataset.from_dict({"example": [0, 1, 2, 3], "first_word": [0, 0, 0, 0], "labels": numbers})
    found = evaluate(made, logits, encoded, Dataset.from_dict({"ner_tags": numbers}))
    assert found.metrics["entity_f1"] == pytest.approx(f1_score(GOLD, SAID), abs=1e-12)
    assert found.metrics["entity_precision"] == pytest.approx(precision_score(GOLD, SAID), abs=1e-12)
    assert found.metrics["entity_recall"] == pytest.approx(recall_score(GOLD, SAID), abs=1e-12)
    assert found.metrics["entity_f1"] == 2 * 1 / (4 + 4)  # 1 right of 4 said, 4 there
    assert found.metrics["accuracy"] == 7 / 10
    assert found.scores.mean() == pytest.approx(found.metrics["entity_f1"], abs=1e-12)
    assert [row["score"] for row in found.predictions] == found.scores.tolist()
    assert found.predictions[0]["prediction"] == SAID[0]
    assert evaluate(made, logits, encoded, Dataset.from_dict({"ner_tags": numbers}), batch=4).metrics == found.metrics
    # Two windows of one row give what one gives.
    parts = [numbers[0][:1], numbers[0][1:], *numbers[1:]]
    split = Dataset.from_dict({"example": [0, 0, 1, 2, 3], "first_word": [0, 1, 0, 0, 0], "labels": parts})
    again = evaluate(made, [logits[0][:1], logits[0][1:], *logits[1:]], split, Dataset.from_dict({"ner_tags": numbers}))
    assert again.metrics == pytest.approx(found.metrics)


def test_scores_spread_as_the_entity_f1_over_draws_of_sentences():
    rng = np.random.default_rng(0)
    gold = [[TAGS.index("B-person")] * n for n in rng.integers(1, 6, 400)]
    said = [[tag if rng.random() < 0.7 else 0 for tag in tags] for tags in gold]

    def f1(chosen):
        tags = [gold[i] for i in chosen]
        columns = {"example": list(range(len(chosen))), "first_word": [0] * len(chosen), "labels": tags}
        encoded, raw = Dataset.from_dict(columns), Dataset.from_dict({"ner_tags": tags})
        return evaluate(task(), [np.eye(5)[said[i]] for i in chosen], encoded, raw)

    drawn = [f1(rng.integers(0, 400, 400)).metrics["entity_f1"] for _ in range(100)]
    assert f1(range(400)).scores.std() / 20 == pytest.approx(np.std(drawn), rel=0.25)


@pytest.mark.parametrize("kind", [Value("string"), ClassLabel(names=TAGS), Value("int64")])
def test_tags_are_texts_class_labels_or_numbers(kind):
    tags = [["B-person", "O"], ["B-location"]]
    if kind != Value("string"):
        tags = [[TAGS.index(tag) for tag in row] for row in tags]
    rows = Dataset.from_dict(
        {"tokens": [["anna", "in"], ["rome"]], "ner_tags": tags},
        features=Features({"tokens": List(Value("string")), "ner_tags": List(kind)}),
    )
    made = task(labels=TAGS)
    found = number_labels({"train": rows}, made, DataConfig(source="x"))["train"]
    named = [[made.label_names[tag] for tag in row] for row in found["ner_tags"][:]]
    assert named == [["B-person", "O"], ["B-location"]]


@pytest.mark.parametrize(
    ("tokens", "tags", "labels", "said"),
    [
        ([["a", "b"], ["c"]], [[0, 0], [0, 0]], TAGS, "row 1"),
        ([["a"], []], [[0], []], TAGS, "row 1"),
        ([["a"]], [[5]], TAGS, "row 0"),
        ([["a"]], [[0]], ["NOUN", "O"], "NOUN"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tokens, tags, labels, said):
    rows = Dataset.from_dict({"tokens": tokens, "ner_tags": tags})
    with pytest.raises(ConfigError, match=said):
        task(labels=labels).check_rows(rows, "train", True)


@pytest.mark.parametrize(("tags", "said"), [(["O", "O"], "lists of labels"), ([["O"], None], "row 1")])
def test_labels_that_are_no_lists_are_refused(tags, said):
    rows = Dataset.from_dict({"tokens": [["a"], ["b"]], "ner_tags": tags})
    with pytest.raises(ConfigError, match=said):
        number_labels({"train": rows}, task(), DataConfig(source="x"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Two teachers without dropout and their stored logits."""
    tree = entities_job(tmp_path_factory.mktemp("entities"), baseline=False)
    for member in (*tree["teachers"], tree["student"]):
        member["model"] = {**member["model"], "config": electra(dropout=0.0)}
    tree = override(tree, {"method.type": "weighted", "method.W": 0.5})
    config = build(tree)
    prepared = prepare(config)
    return tree, config, prepared, train_and_fill(config, prepared)


def test_two_workers_train_on_stored_rows_as_one(taught, tmp_path):
    _, config, prepared, served = taught
    job = student_jobs(config, prepared, config.method, served)[0]
    one = curve(train(job))
    assert len(one) == 6
    two = dataclasses.replace(job, workers=2)
    train_by_two([two], tmp_path)
    events = [from_json(line) for line in (two.folder / "events-0.jsonl").open()]
    np.testing.assert_allclose(curve(events), one, atol=1e-5)
    a, b = job.result()["generations"][0]["test"], two.result()["generations"][0]["test"]
    assert a.keys() >= {"entity_f1", "entity_precision", "entity_recall", "accuracy", "nll"}
    assert a == pytest.approx(b, abs=1e-4)


def test_rows_over_the_wire_have_the_stored_logits(taught):
    """What a live teacher is sent, and answers, for rows of different numbers of words."""
    _, config, prepared, served = taught
    splits = prepared.teachers[served[0].name].splits
    rows = input_columns(splits["train"].open(), prepared.task)
    folds = np.full(len(rows), -1)
    answer = TeacherModel(served[0]).answer(unpack(pack(rows[:], folds)), folds)
    shapes = np.array([row.shape for row in answer])
    assert len(np.unique(shapes[:, 0])) > 3
    found = RowsAnswer(np.concatenate([row.ravel() for row in answer]), shapes, 0.0).rows()
    stored = stored_logits(prepared, served, "train", LogitStore.at(config.store / "logits"))
    for position, row in enumerate(found):
        np.testing.assert_allclose(row.astype(float), stored.view(0, position).astype(float), atol=5e-3)
