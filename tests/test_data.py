"""Rows: where they come from, what becomes of their labels, their identity, and their encoding."""

import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL.Image import fromarray
from tiny import bert, questions_job, reviews_job, save_tokenizer
from transformers import AutoTokenizer

from raykd.common import row_files
from raykd.common.errors import ConfigError
from raykd.common.hashing import digest
from raykd.config.load import build, load, override
from raykd.config.schema import TaskConfig, TeacherConfig
from raykd.data import encoding
from raykd.data import loading as raykd_data
from raykd.data.class_names import listed
from raykd.data.encoding import Encoded, encode, id_column, keep_raw
from raykd.data.folds import held_out
from raykd.data.groups import groups_of
from raykd.data.loading import load_splits
from raykd.data.split import Split
from raykd.plan.prepare import prepare
from raykd.tasks import make_task

JOBS = Path(__file__).parent.parent / "jobs"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def splits_of(source: Path | str, *, task: dict | None = None, **data) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits as a job with this data has them, and the names of its classes."""
    tree = {
        "name": "x",
        "task": {"type": "text-classification", **(task or {})},
        "data": {"source": str(source), **data},
        "teachers": [{"name": "a", "model": "m", "recipe": {}}],
        "student": {"model": "m"},
    }
    config = build(tree)
    made = make_task(config.task, config.task.labels or ())
    return load_splits(config, made), made.label_names


def sentences(count: int, start: int = 0, **columns) -> dict[str, list]:
    texts = [f"film number {i} is good" for i in range(start, start + count)]
    return {"text": texts, "label": [i % 2 for i in range(count)]} | columns


def write(path: Path, columns: dict[str, list]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        Dataset(table).to_json(path)
    return path


CUT = {"train": "train[:6]", "validation": "train[6:8]", "test": "train[8:]"}


# Sources ------------------------------------------------------------------------------------------


def test_digits_are_cut_into_disjoint_splits():
    config = load(JOBS / "digits.yaml")
    task = make_task(config.task)
    splits = load_splits(config, task)
    assert {n: len(s.rows) for n, s in splits.items()} == {
        "train": 300,
        "transfer": 597,
        "validation": 200,
        "test": 700,
    }
    assert task.label_names == tuple("0123456789")
    ids = np.concatenate([s.ids for s in splits.values()])
    assert len(np.unique(ids, axis=0)) == len(ids) == 1797, "every picture once"
    assert splits["transfer"].rows.column_names == ["image"]
    # scikit-learn's own pictures, with their own labels, in an order of raykd's.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    picture, label = splits["train"].rows[0].values()
    np.testing.assert_array_equal(np.asarray(picture) / 15, bunch.images[order[0]])
    assert label == bunch.target[order[0]]
    np.testing.assert_array_equal(splits["test"].rows["label"], bunch.target[order[1097:]])


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "csv"])
def test_a_single_file(tmp_path, kind):
    path = write(tmp_path / f"rows.{kind}", sentences(10))
    splits, names = splits_of(path, **CUT)
    assert {n: s.rows["text"][:] for n, s in splits.items()} == {
        "train": sentences(10)["text"][:6],
        "validation": sentences(10)["text"][6:8],
        "test": sentences(10)["text"][8:],
    }
    assert splits["train"].rows["label"][:] == [0, 1, 0, 1, 0, 1]
    assert names == ("0", "1")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_file_that_was_replaced_under_the_same_time_and_size_is_read_again(tmp_path, kind, folder):
    """As rsync -t and git leave it; datasets would give the rows that it has cached."""
    path, then = tmp_path / "rows" / f"train.{kind}", (1_700_000_000, 1_700_000_000)
    path.parent.mkdir()
    source, size, digests = path.parent if folder else path, set(), set()
    for word in ("good", "poor", "good"):
        write(path, sentences(10, text=[f"{word} film {i}" for i in range(10)]))
        os.utime(path, then)
        size.add(path.stat().st_size)
        train = splits_of(source, **CUT)[0]["train"]
        assert train.rows["text"][0] == f"{word} film 0"
        digests.add(train.digest)
    assert len(size) == 1
    assert len(digests) == 2


def test_a_folder_that_links_to_itself_is_read(tmp_path):
    write(tmp_path / "train.parquet", sentences(10))
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(splits_of(tmp_path, **CUT)[0]["train"].rows) == 6


def test_the_same_rows_have_the_same_identity_from_every_kind_of_file(tmp_path):
    found = [splits_of(write(tmp_path / f"rows.{k}", sentences(10)), **CUT)[0] for k in ("parquet", "jsonl", "csv")]
    assert len({s["train"].digest for s in found}) == 1


def test_a_folder_of_splits(tmp_path):
    for at, name in enumerate(("train", "validation", "test")):
        write(tmp_path / f"{name}.parquet", sentences(4, start=10 * at))
    splits, _ = splits_of(tmp_path)
    assert splits["test"].rows["text"][0] == "film number 20 is good"
    mixed, _ = splits_of(tmp_path, train="train[:2]+test[:1]", test="test[50%:]")
    assert len(mixed["train"].rows) == 3
    assert mixed["test"].rows["text"][:] == splits["test"].rows["text"][2:]


def test_splits_in_files_of_their_own(tmp_path):
    source = write(tmp_path / "rows.parquet", sentences(10))
    test = write(tmp_path / "others.csv", sentences(5, start=50))
    splits, _ = splits_of(source, train="train[:8]", validation="train[8:]", test=str(test))
    assert len(splits["train"].rows) == 8
    assert splits["test"].rows["text"][:] == sentences(5, start=50)["text"]


def test_columns_are_renamed_and_others_dropped(tmp_path):
    rows = sentences(10)
    path = write(tmp_path / "rows.parquet", {"id": rows["label"], "sentence": rows["text"], "stars": rows["label"]})
    splits, _ = splits_of(path, columns={"text": "sentence", "label": "stars"}, **CUT)
    assert sorted(splits["train"].rows.column_names) == ["label", "text"]


def test_text_pairs_are_two_columns(tmp_path, tokenizer):
    path = write(tmp_path / "rows.parquet", sentences(10, text_pair=["it was awful"] * 10))
    splits, _ = splits_of(path, **CUT)
    assert sorted(splits["train"].rows.column_names) == ["label", "text", "text_pair"]
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    first = encode(splits["train"], task, tokenizer, tmp_path / "store", None).open()[0]
    assert first["token_type_ids"] == [0] * 7 + [1] * 4
    assert tokenizer.decode(first["input_ids"][7:]) == "it was awful [SEP]"
    # The second text is part of the row's identity.
    other = write(tmp_path / "other.parquet", sentences(10, text_pair=["it was great"] * 10))
    assert not np.isin(splits_of(other, **CUT)[0]["train"].ids, splits["train"].ids).all()


# Labels -------------------------------------------------------------------------------------------


def test_labels_that_are_texts(tmp_path):
    path = write(tmp_path / "rows.jsonl", sentences(10, label=["poor", "fine"] * 5))
    splits, names = splits_of(path, **CUT)
    assert names == ("fine", "poor")
    assert splits["train"].rows["label"][:] == [1, 0] * 3
    splits, names = splits_of(path, task={"labels": ["poor", "fine"]}, **CUT)
    assert names == ("poor", "fine")
    assert splits["train"].rows["label"][:] == [0, 1] * 3


def named(path: Path, names: list[str], labels: list[int]) -> Path:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict(sentences(10, label=labels), features).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("wanted", "names", "labels"),
    [
        (None, ("neg", "pos", "mix"), [0, 1, 2]),  # the data's own
        (["neg", "pos", "mix"], ("neg", "pos", "mix"), [0, 1, 2]),
        (["Pos", "Mix", "Neg"], ("Pos", "Mix", "Neg"), [2, 0, 1]),  # another order: by name, not by number
        (["mix", "neg", "pos", "none"], ("mix", "neg", "pos", "none"), [1, 2, 0]),  # a class that the data lacks
        (["bad", "good", "both"], ("bad", "good", "both"), [0, 1, 2]),  # names of one's own, in the data's order
    ],
)
def test_named_classes_are_numbered_in_the_models_order(tmp_path, wanted, names, labels):
    path = named(tmp_path / "rows.parquet", ["neg", "pos", "mix"], [0, 1, 2] * 3 + [0])
    splits, found = splits_of(path, task={"labels": wanted}, **CUT)
    assert found == names
    assert splits["train"].rows["label"][:3] == labels


def test_every_split_is_numbered_by_its_own_names(tmp_path):
    train = named(tmp_path / "train.parquet", ["neg", "pos"], [0, 1] * 5)
    test = named(tmp_path / "other.parquet", ["pos", "neg"], [0, 1] * 5)
    splits, names = splits_of(train, train="train[:8]", validation="train[8:]", test=str(test))
    assert names == ("neg", "pos")
    assert splits["test"].rows["label"][:2] == [1, 0]


def test_labels_that_are_true_or_false(tmp_path):
    splits, names = splits_of(write(tmp_path / "rows.parquet", sentences(10, label=[True, False] * 5)), **CUT)
    assert names == ("False", "True")
    assert [type(y) for y in splits["train"].rows["label"][:2]] == [int, int]
    assert splits["train"].rows["label"][:2] == [1, 0]


@pytest.mark.parametrize("labels", [["yes", "no"], ["TRUE", "FALSE"], ["1", "0"]])
def test_true_and_false_go_by_name(tmp_path, labels):
    """Whatever the order in which the user names them."""
    path = write(tmp_path / "rows.parquet", sentences(10, label=[True, False] * 5))
    splits, names = splits_of(path, task={"labels": labels}, **CUT)
    assert [names[y] for y in splits["train"].rows["label"][:2]] == labels


def test_numerals_that_are_texts_are_in_the_order_of_their_numbers(tmp_path):
    path = write(tmp_path / "rows.jsonl", sentences(24, label=[str(i % 12) for i in range(24)]))
    splits, names = splits_of(path, train="train[:12]", validation="train[12:20]", test="train[20:]")
    assert names == tuple(map(str, range(12)))
    assert splits["train"].rows["label"][:] == list(range(12))
    path = write(tmp_path / "steps.jsonl", sentences(10, label=["-1", "10", "2.5", "0", "9"] * 2))
    assert splits_of(path, **CUT)[1] == ("-1", "0", "2.5", "9", "10")


def test_numbers_go_by_name_where_classes_have_numbers_as_names(tmp_path):
    """Ratings of 1 to 5 are no places; and some of them, as in a small split, must not become places."""
    train = write(tmp_path / "train.jsonl", sentences(10, label=["1", "2", "3", "4", "5"] * 2))
    test = write(tmp_path / "test.parquet", sentences(4, start=50, label=[1, 2, 3, 3]))
    splits, names = splits_of(train, train="train[:8]", validation="train[8:]", test=str(test))
    assert names == ("1", "2", "3", "4", "5")
    assert splits["test"].rows["label"][:] == [0, 1, 2, 2]
    path = write(tmp_path / "rows.parquet", sentences(10, label=[2, 0, 1, 2, 0, 1, 1, 0, 0, 0]))
    splits, _ = splits_of(path, task={"labels": ["2", "0", "1"]}, **CUT)
    assert splits["train"].rows["label"][:3] == [0, 1, 2]
    assert splits["validation"].rows["label"][:] == [2, 1]
    # Not all of them are names, so they are places.
    splits, _ = splits_of(path, task={"labels": ["1", "2", "3"]}, **CUT)
    assert splits["train"].rows["label"][:3] == [2, 0, 1]


@pytest.mark.parametrize("label", [[0, 1] * 5, [True, False] * 5])
def test_numbers_beside_names_are_refused(tmp_path, label):
    """Train's texts stand in the order of the alphabet: which of them is 0 in the other file, nothing says."""
    train = write(tmp_path / "train.jsonl", sentences(10, label=["pos", "neg"] * 5))
    test = write(tmp_path / "test.parquet", sentences(10, start=50, label=label))
    cut = {"train": "train[:8]", "validation": "train[8:]", "test": str(test)}
    with pytest.raises(ConfigError, match=r"data\.test = .* are the names neg, pos\. .*task\.labels"):
        splits_of(train, **cut)
    splits, _ = splits_of(train, task={"labels": ["neg", "pos"]}, **cut)
    assert splits["test"].rows["label"][:2] == [int(y) for y in label[:2]]


def test_names_that_differ_in_case_alone_are_different_classes(tmp_path):
    names = ["A", "a", "B", "b"]
    train = named(tmp_path / "train.parquet", names, [0, 1, 2, 3] * 2 + [0, 1])
    other = named(tmp_path / "other.parquet", names[::-1], [0, 1, 2, 3] * 2 + [0, 1])
    splits, found = splits_of(train, train="train[:8]", validation="train[8:]", test=str(other))
    assert found == tuple(names)
    assert splits["train"].rows["label"][:4] == [0, 1, 2, 3]
    assert splits["test"].rows["label"][:4] == [3, 2, 1, 0]
    texts = write(tmp_path / "texts.jsonl", sentences(10, label=["Neg", "neg"] * 5))
    with pytest.raises(ConfigError, match=r"data\.train = Neg: .* not one of neg, pos"):
        splits_of(texts, task={"labels": ["neg", "pos"]}, **CUT)


def test_case_does_not_count_where_it_is_unambiguous(tmp_path):
    path = write(tmp_path / "rows.jsonl", sentences(10, label=["NEG", "Pos"] * 5))
    splits, names = splits_of(path, task={"labels": ["pos", "neg"]}, **CUT)
    assert names == ("pos", "neg")
    assert splits["train"].rows["label"][:2] == [1, 0]


def test_classes_of_splits_in_different_orders_are_renamed_by_name(tmp_path):
    train = named(tmp_path / "train.parquet", ["neg", "pos"], [0, 1] * 5)
    test = named(tmp_path / "other.parquet", ["pos", "neg"], [0, 1] * 5)
    cut = {"train": "train[:8]", "validation": "train[8:]", "test": str(test)}
    splits, _ = splits_of(train, task={"labels": ["bad", "good"]}, **cut)
    assert splits["train"].rows["label"][:2] == [0, 1]
    assert splits["test"].rows["label"][:2] == [1, 0]
    texts = write(tmp_path / "texts.jsonl", sentences(4, start=50, label=["pos", "neg"] * 2))
    splits, _ = splits_of(train, task={"labels": ["bad", "good"]}, **{**cut, "test": str(texts)})
    assert splits["test"].rows["label"][:2] == [1, 0]


@pytest.mark.parametrize(("names", "labels"), [(["cat", "dog"], None), (["cat", "dog"], ["bad", "good"])])
def test_classes_of_other_names_are_not_renamed_by_place(tmp_path, names, labels):
    train = named(tmp_path / "train.parquet", ["neg", "pos"], [0, 1] * 5)
    test = named(tmp_path / "other.parquet", names, [0, 1] * 5)
    with pytest.raises(ConfigError, match=r"task\.labels = .* the classes of data\.test are cat, dog"):
        splits_of(train, task={"labels": labels}, train="train[:8]", validation="train[8:]", test=str(test))


def test_more_names_than_the_data_has_rename_nothing(tmp_path):
    """bad, mixed, good for neg, pos: good would have no rows, and mixed those of pos."""
    path = named(tmp_path / "train.parquet", ["neg", "pos"], [0, 1] * 5)
    with pytest.raises(ConfigError, match=r"task\.labels = bad, mixed, good: the classes of data\.train are neg, pos"):
        splits_of(path, task={"labels": ["bad", "mixed", "good"]}, **CUT)


@pytest.mark.parametrize("labels", [[1, 2, 3, 4, 5], [1201, 55142], [-1, 1], [-1, 0, 1], [1.0, 2.0, 4.0]])
def test_numbers_are_the_classes_that_occur(tmp_path, labels):
    """Stars, ids, signs, and what pandas writes where a label is missing."""
    path = write(tmp_path / "rows.parquet", sentences(20, label=(labels * 10)[:20]))
    splits, names = splits_of(path, train="train[:10]", validation="train[10:15]", test="train[15:]")
    assert names == tuple(str(int(value)) for value in labels)
    assert splits["train"].rows["label"][:] == [i % len(labels) for i in range(10)]
    assert splits["test"].rows["label"][:] == [i % len(labels) for i in range(15, 20)]


def test_a_number_of_which_only_other_splits_have_rows(tmp_path, caplog):
    train = write(tmp_path / "train.parquet", sentences(10, label=[1, 4] * 5))
    test = write(tmp_path / "other.parquet", sentences(4, start=50, label=[1, 3, 4, 3]))
    cut = {"train": "train[:6]", "validation": "train[6:]"}
    with caplog.at_level(logging.WARNING, "raykd.data.labels"):
        splits, names = splits_of(train, test=str(test), **cut)
    assert names == ("1", "3", "4")
    assert splits["test"].rows["label"][:] == [0, 1, 2, 1]
    assert "no row is of class 3" in caplog.text
    hidden = write(tmp_path / "hidden.parquet", sentences(4, start=50, label=[1, -1, -1, 5]))
    with pytest.raises(
        ConfigError, match=r"data\.test = -1: 3 rows \(the first is row 1, counted from 0\) .* 1, 4\. .*task\.labels"
    ):
        splits_of(train, test=str(hidden), **cut)


@pytest.mark.parametrize(("labels", "names"), [([2, 3, 1], ["bad", "fair", "good"]), ([1, -1], ["bad", "good"])])
def test_numbers_from_one_are_the_named_classes_in_their_order(tmp_path, labels, names):
    path = write(tmp_path / "rows.parquet", sentences(20, label=(labels * 10)[:20]))
    splits, found = splits_of(
        path, task={"labels": names}, train="train[:10]", validation="train[10:15]", test="train[15:]"
    )
    assert found == tuple(names)
    assert splits["train"].rows["label"][:3] == ([1, 2, 0] if len(names) == 3 else [1, 0, 1])


def test_labels_that_differ_in_case_or_spaces_are_counted(tmp_path, caplog):
    path = write(tmp_path / "rows.jsonl", sentences(10, label=["Pos", "pos ", "neg", "neg", "Pos"] * 2))
    with caplog.at_level(logging.WARNING, "raykd"):
        _, names = splits_of(path, **CUT)
    assert names == ("Pos", "neg", "pos ")
    assert 'Pos (3 rows), "pos " (1 row)' in caplog.text
    with pytest.raises(
        ConfigError, match=r"data\.train = Pos: 3 rows \(the first is row 0, counted from 0\).*differs from pos only"
    ):
        splits_of(path, task={"labels": ["pos", "neg"]}, **CUT)
    spaced = write(tmp_path / "spaced.jsonl", sentences(10, label=["pos  one ", "neg"] * 5))
    assert splits_of(spaced, task={"labels": ["neg", "Pos one"]}, **CUT)[0]["train"].rows["label"][:2] == [1, 0]


def test_many_classes_are_cut_on_the_screen():
    assert listed(["a", "b"]) == "a, b"
    text = listed([f"category {i:04d}" for i in range(1500)])
    assert text.startswith("category 0000, category 0001, ")
    assert text.endswith(" and 1480 more")


def test_classes_that_train_does_not_show(tmp_path, caplog):
    """A file that is sorted by label, cut."""
    path = write(tmp_path / "rows.jsonl", sentences(10, label=["neg"] * 5 + ["pos"] * 5))
    cut = {"train": "train[2:8]", "validation": "train[:2]", "test": "train[8:]"}
    with caplog.at_level(logging.WARNING, "raykd.data.labels"):
        splits_of(path, task={"labels": ["neg", "mix", "pos"]}, **cut)
    told = [r.getMessage() for r in caplog.records if r.name == "raykd.data.labels"]
    assert len(told) == 1
    assert "data.train = train[2:8]" in told[0]
    assert "mix" in told[0]


def test_hidden_labels_of_named_classes_stay_hidden(tmp_path):
    """GLUE's test labels are -1: no class, in whatever order the classes are."""
    path = named(tmp_path / "rows.parquet", ["neg", "pos"], [0, 1] * 4 + [-1, -1])
    with pytest.raises(ConfigError, match=r"data\.test = -1: 2 rows"):
        splits_of(path, task={"labels": ["pos", "neg"]}, **CUT)


# Transfer rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_transfer_rows_lose_their_labels(tmp_path, tokenizer, labelled):
    source = write(tmp_path / "rows.parquet", sentences(10))
    columns = sentences(5, start=90)
    if not labelled:
        del columns["label"]
    transfer = write(tmp_path / "more.parquet", columns)
    splits, _ = splits_of(source, transfer=str(transfer), **CUT)
    split = splits["transfer"]
    assert split.rows.column_names == ["text"]
    assert not split.labelled
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    encoded = encode(split, task, tokenizer, tmp_path / "store", None)
    assert encoded.open()["labels"][:] == [[-100]] * 5
    assert encode(splits["train"], task, tokenizer, tmp_path / "store", None).open()["labels"][:2] == [[0], [1]]


def test_the_same_rows_with_and_without_labels_are_encoded_apart(tmp_path, tokenizer):
    """A student must not find the hidden labels of transfer rows in what another job has encoded."""
    source = write(tmp_path / "rows.parquet", sentences(10))
    splits, _ = splits_of(source, **CUT)
    moved, _ = splits_of(source, **{**CUT, "train": "train[:2]", "transfer": "train[2:6]"})
    whole, _ = splits_of(source, **{**CUT, "train": "train[2:6]"})
    np.testing.assert_array_equal(moved["transfer"].ids, whole["train"].ids)
    np.testing.assert_array_equal(splits["train"].ids[2:], whole["train"].ids)
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    with_labels, without = (
        encode(s, task, tokenizer, tmp_path / "store", None) for s in (whole["train"], moved["transfer"])
    )
    assert with_labels.folder != without.folder
    np.testing.assert_array_equal(id_column(with_labels.open(), "row_id"), id_column(without.open(), "row_id"))


def test_rows_are_encoded_again_for_another_number_of_labels(tmp_path, tokenizer):
    """The rows of a transfer split are the same, but each has a place for every label."""
    source = write(tmp_path / "rows.parquet", sentences(10))
    split = splits_of(source, **{**CUT, "train": "train[:2]", "transfer": "train[2:6]"})[0]["transfer"]
    for names in (["a", "b"], ["a", "b", "c"]):
        task = make_task(TaskConfig(type="multi-label-classification"), names)
        rows = encode(split, task, tokenizer, tmp_path / "store", None).open()
        assert rows["labels"][:] == [[-100] * len(names)] * 4


# Splits that share rows ---------------------------------------------------------------------------


def test_equal_rows_in_two_splits_are_counted_in_a_warning(tmp_path, caplog):
    """The same text at another position, as in many public sets: no mistake of the job's, but good to know."""
    rows = sentences(10)
    rows["text"][8], rows["text"][9] = rows["text"][0], rows["text"][3]
    with caplog.at_level(logging.WARNING, "raykd"):
        splits_of(write(tmp_path / "rows.parquet", rows), **CUT)
    assert [r.getMessage() for r in caplog.records] == [
        "data: 2 distinct rows of test are also in train (equal content)"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "raykd"):
        splits_of(write(tmp_path / "rows.parquet", sentences(10)), **CUT)
    assert not caplog.records


def test_rows_that_contradict_each_other_are_counted_in_a_warning(tmp_path, caplog):
    rows = {"text": [*"abacbd", *"xyy", *"zvw"], "label": [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1]}
    splits_of(write(tmp_path / "rows.parquet", rows), train="train[:6]", validation="train[6:9]", test="train[9:]")
    [found] = [r.getMessage() for r in caplog.records]
    assert found == "data.train: 2 of 6 rows have the same content as another row and a different label"


@pytest.mark.parametrize(
    ("kind", "text", "label", "doubtful"),
    [
        ("token-classification", {"tokens": [["ann", "sleeps"]] * 6}, "ner_tags", True),
        ("multi-label-classification", {"text": ["ann sleeps"] * 6}, "labels", False),
    ],
)
def test_the_order_of_tags_counts_and_that_of_labels_does_not(tmp_path, kind, text, label, doubtful):
    rows = write(tmp_path / "rows.parquet", text | {label: [["B-a", "O"], ["O", "B-a"]] * 3})
    cut = {"train": "train[:2]", "validation": "train[2:4]", "test": "train[4:]"}
    notes = splits_of(rows, task={"type": kind}, **cut)[0]["train"].notes
    assert any("2 of 2 rows have the same content as another row" in note for note in notes) == doubtful


def test_a_split_with_one_class_is_a_warning(tmp_path, caplog):
    """Slices of data that are sorted by label."""
    rows = write(tmp_path / "rows.parquet", sentences(10) | {"label": [0] * 4 + [1] * 6})
    cut = {"train": "train[:4]", "validation": "train[5:7]", "test": "train[7:]"}
    with caplog.at_level(logging.WARNING, "raykd"):
        splits_of(rows, task={"labels": ["bad", "good"]}, **cut)
    assert [r.getMessage() for r in caplog.records] == [
        "data.train: all 4 rows are of one class, bad. Shuffle the data, or take rows of every class",
        "data.validation: all 2 rows are of one class, good. Shuffle the data, or take rows of every class",
        "data.test: all 3 rows are of one class, good. Shuffle the data, or take rows of every class",
    ]


def test_questions_on_one_article_in_two_splits_are_counted_in_a_warning(tmp_path, caplog):
    tree = questions_job(tmp_path)
    path = tmp_path / "data" / "train.parquet"
    columns = pq.read_table(path).to_pydict()
    columns["title"] = ["a"] * 20 + ["b"] * 8 + ["c"] * 20  # the border of train and validation is inside of b
    pq.write_table(pa.table(columns), path)
    config = build(tree)
    with caplog.at_level(logging.WARNING, "raykd"):
        load_splits(config, make_task(config.task))
    assert [r.getMessage() for r in caplog.records] == [
        "data: 1 title is in both train and validation. Split the data by article",
        "data: 1 title is in both validation and test. Split the data by article",
    ]


def test_rows_of_one_group(tmp_path, caplog):
    """They are in one fold, and a group in two splits is warned of. Their column is no part of a row's content."""
    rows = sentences(12)
    grouped = rows | {"patient": [7, 7, 7, 1, 1, 2, 3, 3, 4, 3, 5, 5]}
    cut = {"train": "train[:8]", "validation": "train[8:10]", "test": "train[10:]"}
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    alone, _ = splits_of(write(tmp_path / "a.parquet", rows), **cut)
    with caplog.at_level(logging.WARNING, "raykd"):
        splits, _ = splits_of(write(tmp_path / "b.parquet", grouped), **cut, group="patient")
    said = "data: 1 patient is in both train and validation. Split the data by patient"
    assert said in [r.getMessage() for r in caplog.records]
    assert said in splits["validation"].notes
    assert said not in splits["test"].notes
    assert groups_of(splits["test"], task) == ("5", "5")
    assert groups_of(alone["test"], task) is None
    assert {name: split.digest for name, split in splits.items()} == {n: split.digest for n, split in alone.items()}
    teacher = TeacherConfig.model_validate({"name": "a", "model": {"config": bert()}, "recipe": {}, "folds": 3})
    out = [set(part.tolist()) for part in held_out(splits["train"], teacher, task)]
    assert set().union(*out) == set(range(8))
    for together in ({0, 1, 2}, {3, 4}, {6, 7}):
        assert sum(together <= part for part in out) == 1


def test_groups_with_an_equal_row_are_in_one_fold(tmp_path):
    """Otherwise a fold's model would have been trained on the other copy. 0 - 1 and 1 - 2 share a text, 3 is alone."""
    texts = ["zero", "thanks", "one", "thanks", "same", "same", "two", "three", "a", "b", "c", "d"]
    rows = {"text": texts, "label": [i % 2 for i in range(12)], "author": [0, 0, 1, 1, 1, 2, 2, 3, *"efgh"]}
    rows["author"] = [str(author) for author in rows["author"]]
    cut = {"train": "train[:8]", "validation": "train[8:10]", "test": "train[10:]"}
    splits, _ = splits_of(write(tmp_path / "a.parquet", rows), **cut, group="author")
    teacher = TeacherConfig.model_validate({"name": "a", "model": {"config": bert()}, "recipe": {}, "folds": 2})
    out = held_out(splits["train"], teacher, make_task(TaskConfig(type="text-classification"), ["0", "1"]))
    assert sorted(sorted(part.tolist()) for part in out) == [[0, 1, 2, 3, 4, 5, 6], [7]]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("doctor", "no such column; it has"),
        ("patient", r"in test, row 1 \(counted from 0\) has no value"),
        ("room", r"in test, 2 rows \(the first is row 0, counted from 0\) have no value"),
        ("drugs", "not a text or a number"),
    ],
)
def test_bad_groups(tmp_path, group, reason):
    rows = sentences(12) | {"patient": ["x"] * 11 + [None], "room": ["x"] * 10 + [""] * 2, "drugs": [["a"]] * 12}
    with pytest.raises(ConfigError, match=reason) as caught:
        splits_of(write(tmp_path / "a.parquet", rows), **CUT | {"test": "train[10:]"}, group=group)
    assert caught.value.key == "data.group"


# Identity -----------------------------------------------------------------------------------------


def test_row_ids_are_of_the_text_alone(tmp_path):
    rows = sentences(10)
    first = splits_of(write(tmp_path / "a.parquet", rows), **CUT)[0]["train"]
    relabelled = {**rows, "label": [1 - y for y in rows["label"]]}
    second = splits_of(write(tmp_path / "b.parquet", relabelled), **CUT)[0]["train"]
    np.testing.assert_array_equal(first.ids, second.ids)
    assert first.digest != second.digest, "labels are part of the split, if not of its rows"
    changed = {**rows, "text": [rows["text"][0] + "!", *rows["text"][1:]]}
    third = splits_of(write(tmp_path / "c.parquet", changed), **CUT)[0]["train"]
    assert (first.ids != third.ids).any(1).tolist() == [True] + [False] * 5


def test_rows_are_identified_some_at_a_time(tmp_path, monkeypatch):
    source = write(tmp_path / "rows.parquet", sentences(10))
    whole = splits_of(source, **CUT)[0]["train"]
    monkeypatch.setattr(raykd_data, "_CHUNK", 4)
    again = splits_of(source, **CUT)[0]["train"]
    np.testing.assert_array_equal(whole.ids, again.ids)
    assert whole.ids[5].tobytes() == digest(b"film number 5 is good")


def test_shuffled_rows_keep_their_ids(tmp_path, tokenizer):
    rows = sentences(10)
    order = [3, 0, 5, 1, 4, 2, 6, 7, 8, 9]
    shuffled = {name: [values[i] for i in order] for name, values in rows.items()}
    first = splits_of(write(tmp_path / "a.parquet", rows), **CUT)[0]["train"]
    second = splits_of(write(tmp_path / "b.parquet", shuffled), **CUT)[0]["train"]
    np.testing.assert_array_equal(first.ids[order[:6]], second.ids)
    assert first.digest != second.digest
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    one, two = (encode(s, task, tokenizer, tmp_path / "store", None) for s in (first, second))
    assert one.digest != two.digest
    for column in ("row_id", "input_hash"):
        np.testing.assert_array_equal(id_column(one.open(), column)[order[:6]], id_column(two.open(), column))


def test_questions_are_identified_by_question_and_context(tmp_path):
    """Their ids are only names; but predictions are told by them, so that they are part of the split."""
    tree = questions_job(tmp_path)
    path = tmp_path / "data" / "train.parquet"
    config = build(tree)
    first = load_splits(config, make_task(config.task))["train"]
    columns = pq.read_table(path).to_pydict()
    pq.write_table(pa.table({**columns, "id": [f"other {i}" for i in columns["id"]]}), path)
    second = load_splits(config, make_task(config.task))["train"]
    np.testing.assert_array_equal(first.ids, second.ids)
    assert first.digest != second.digest


@pytest.mark.parametrize("ids", [None, [None, "", None, ""]])
def test_questions_without_an_id_have_one_of_their_content(tmp_path, ids):
    columns = {"question": ["who", "what", "who", "who"], "context": ["ann", "ann", "bob", "ann"]}
    columns["answers"] = [{"text": [text], "answer_start": [0]} for text in columns["context"]]
    path = write(tmp_path / "rows.parquet", columns | ({"id": ids} if ids else {}))
    cut = {"train": "train[:2]", "validation": "train[2:3]", "test": "train[3:]"}
    splits, _ = splits_of(path, task={"type": "question-answering"}, **cut)
    found = [key for name in cut for key in splits[name].rows["id"][:]]
    assert len(set(found)) == 3
    assert found[0] == found[3]
    with pytest.raises(ConfigError, match=r"data\.columns\.id = key: .*no such column"):
        splits_of(path, task={"type": "question-answering"}, columns={"id": "key"}, **cut)


def test_pictures_are_identified_by_their_bytes(tmp_path):
    """Not by their file's name or place, which say nothing of what is in it."""

    def ids(pictures: list[np.ndarray], names: list[str]) -> np.ndarray:
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for picture, name in zip(pictures, names, strict=True):
            fromarray(picture).save(folder / f"{name}.png")
        features = Features({"image": Image(), "label": Value("int64")})
        paths = {"image": [str(folder / f"{n}.png") for n in names], "label": [0, 1]}
        rows = Dataset.from_dict(paths, features=features)
        from raykd.data.loading import row_ids

        return row_ids(rows, make_task(TaskConfig(type="image-classification"), ["0", "1"]))

    black, white = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    grey = black.copy()
    grey[3, 3] = 1
    np.testing.assert_array_equal(ids([black, white], ["a", "b"]), ids([black, white], ["c", "d"]))
    np.testing.assert_array_equal(ids([black, white], ["e", "f"]), ids([white, black], ["g", "h"])[::-1])
    assert (ids([black, white], ["i", "j"]) != ids([grey, white], ["k", "l"])).any(1).tolist() == [True, False]


def test_the_colour_mode_of_pictures_identifies_them_too(tmp_path):
    """It decides what models see. Pictures without one keep the identity that they had before."""
    pictures = [fromarray(np.full((4, 4, 3), (i * 20, 90, 0), np.uint8)) for i in range(6)]
    found = {}
    for mode in (None, "L", "RGB"):
        features = Features({"image": Image(mode=mode), "label": Value("int64")})
        Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features).save_to_disk(tmp_path / str(mode))
        cut = {"train": "train[:2]", "validation": "train[2:4]", "test": "train[4:]"}
        splits, _ = splits_of(tmp_path / str(mode), task={"type": "image-classification"}, **cut)
        found[mode] = splits["train"]
    assert len({split.digest for split in found.values()}) == 3
    assert (found["L"].ids != found["RGB"].ids).any(1).all(), "logits are found by them"
    kept = found[None].rows.cast_column("image", Image(decode=False))["image"][:]
    assert [row.tobytes() for row in found[None].ids] == [digest(picture["bytes"]) for picture in kept]


def test_pictures_from_a_folder_of_classes(tmp_path):
    """The layout that `datasets` calls imagefolder: a folder a class."""
    for label, value in (("cat", 10), ("dog", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(4):
            fromarray(np.full((6, 6), value + i, np.uint8)).save(tmp_path / "data" / label / f"{i}.png")
    model = {"config": {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 8}}
    model["config"] |= {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    tree = {
        "name": "x",
        "output": str(tmp_path / "runs"),
        "task": {"type": "image-classification"},
        "data": {"source": str(tmp_path / "data"), "train": "train[:2]+train[6:]", "validation": "train[2:4]"},
        "teachers": [{"name": "a", "model": model, "recipe": {}}],
        "student": {"model": model},
    }
    prepared = prepare(build(override(tree, {"data.test": "train[4:6]"})))
    assert prepared.task.label_names == ("cat", "dog")
    train = prepared.student.splits["train"].open()
    assert len(train) == 4
    batch = prepared.task.collate(train[:], prepared.student.model.processor).to(torch.device("cpu"))
    assert batch.inputs["pixel_values"].shape == (4, 1, 8, 8)
    grey = (batch.inputs["pixel_values"][:, 0, 0, 0] + 1) / 2 * 255
    values = [200 + i if label else 10 + i for [label] in train["labels"][:] for i in range(4)]
    assert {round(value, 3) for value in grey.tolist()} <= {*values}
    assert [[int(value > 100)] for value in grey.tolist()] == train["labels"][:]


# Encoding -----------------------------------------------------------------------------------------


def test_encoding_is_reused(tmp_path, tokenizer, monkeypatch):
    source = write(tmp_path / "rows.parquet", sentences(10))
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    first = encode(splits_of(source, **CUT)[0]["train"], task, tokenizer, tmp_path / "store", None)

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("it is encoded already")

    monkeypatch.setattr(Dataset, "map", not_again)
    # Found by content: other objects, another file, another tokenizer object.
    again = splits_of(write(tmp_path / "copy.csv", sentences(10)), **CUT)[0]["train"]
    other = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path / "tokenizer"))
    assert encode(again, task, other, tmp_path / "store", None) == first
    longer = make_task(TaskConfig(type="text-classification", max_length=9), ["0", "1"])
    with pytest.raises(AssertionError, match="already"):
        encode(again, longer, tokenizer, tmp_path / "store", None)


def test_encoded_rows_are_cut_to_length(tmp_path, tokenizer):
    split = splits_of(write(tmp_path / "rows.parquet", sentences(10)), **CUT)[0]["train"]
    task = make_task(TaskConfig(type="text-classification", max_length=8), ["0", "1"])
    rows = encode(split, task, tokenizer, tmp_path, None).open()
    assert rows["length"][:] == [7] * 6
    split = splits_of(write(tmp_path / "long.parquet", sentences(10, text=["good " * 50] * 10)), **CUT)[0]["train"]
    cut = encode(split, task, tokenizer, tmp_path, None).open()
    assert cut["length"][:] == [8] * 6
    assert task.notes(cut) == ["6 of 6 rows reach task.max_length = 8 tokens; anything beyond is cut off"]
    assert task.notes(rows) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_encoding_leaves_nothing_but_the_rows(tmp_path, tokenizer, monkeypatch, processes):
    """datasets would keep them a second time in its cache, in a file that two drivers write at once."""
    monkeypatch.setattr(encoding, "_PARALLEL_FROM_ROWS", 2)
    split = splits_of(write(tmp_path / "rows.parquet", sentences(10)), **CUT)[0]["train"]
    cache = Path(split.rows.cache_files[0]["filename"]).parent
    before = sorted(cache.iterdir())
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    encoded = encode(split, task, tokenizer, tmp_path / "store", processes)
    assert len(encoded.open()) == 6
    assert sorted(cache.iterdir()) == before
    assert list((tmp_path / "store" / "data").iterdir()) == [encoded.folder]


def test_encoding_in_parallel_is_the_same(tmp_path, tokenizer, monkeypatch):
    split = splits_of(
        write(tmp_path / "rows.parquet", sentences(40)), **{**CUT, "train": "train[10:]", "test": "train[8:10]"}
    )[0]
    task = make_task(TaskConfig(type="text-classification"), ["0", "1"])
    alone = encode(split["train"], task, tokenizer, tmp_path / "one", 2)
    used = []
    whole = Dataset.map

    def watched(rows: Dataset, *given: object, **options: object) -> Dataset:
        used.append(options["num_proc"])
        return whole(rows, *given, **options)

    monkeypatch.setattr(Dataset, "map", watched)
    monkeypatch.setattr(encoding, "_PARALLEL_FROM_ROWS", 10)
    shared = encode(split["train"], task, tokenizer, tmp_path / "two", 2)
    assert used == [2]
    assert shared.digest == alone.digest
    assert shared.open()[:] == alone.open()[:]
    assert shared.open()["example"][:] == list(range(30))


def test_a_teacher_with_another_tokenizer_has_its_own_encoding(tmp_path):
    tree = reviews_job(tmp_path)
    other = str(save_tokenizer(tmp_path / "other", extra=["surprise"]))
    prepared = prepare(build(override(tree, {"teachers.b.model.tokenizer": other})))
    student, a, b = prepared.student, prepared.teachers["a"], prepared.teachers["b"]
    assert a.splits == student.splits
    for name in ("train", "validation", "test"):
        assert b.splits[name].folder != student.splits[name].folder
        mine, theirs = (m.splits[name].open() for m in (student, b))
        np.testing.assert_array_equal(id_column(mine, "row_id"), id_column(theirs, "row_id"))
        assert mine["labels"][:] == theirs["labels"][:]


def test_raw_rows_are_kept_for_scoring(tmp_path):
    split = splits_of(write(tmp_path / "rows.parquet", sentences(10)), **CUT)[0]["test"]
    folder = keep_raw(split, tmp_path / "store")
    assert datasets.load_from_disk(str(folder))[:] == {"text": sentences(10)["text"][8:], "label": [0, 1]}
    assert keep_raw(split, tmp_path / "store") == folder


@pytest.mark.parametrize(("most", "batches"), [(2**25, 1), (10_000, 5)])
def test_saved_rows_lie_in_few_batches(tmp_path, monkeypatch, most, batches):
    """datasets itself makes ten of these, each of which costs time when millions of rows are opened."""
    monkeypatch.setattr(row_files, "_BATCH_BYTES", most)
    rows = Dataset.from_dict({"row_id": [b"%016d" % i for i in range(1000)], "tokens": [[i] * 3 for i in range(1000)]})
    row_files.save_rows(rows, tmp_path / "x")
    opened = Encoded(tmp_path / "x", "").open()
    assert opened.data.column("row_id").num_chunks == batches
    assert opened[:] == rows[:]
    assert opened.features == rows.features
    assert {p.suffix for p in (tmp_path / "x").iterdir()} == {".arrow", ".json"}


def test_two_jobs_can_encode_the_same_rows_concurrently(tmp_path):
    """Whoever is first wins; the other's draft goes."""
    rows = Dataset.from_dict({"text": ["a"]})
    row_files.save_rows(rows, tmp_path / "store" / "x")
    row_files.save_rows(rows, tmp_path / "store" / "x")
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["x"]
    assert Encoded(tmp_path / "store" / "x", "").open()[:] == {"text": ["a"]}
