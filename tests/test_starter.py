"""The first job that `raykd init` writes: its guesses, and that it is valid."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, List, Value
from PIL import Image
from tiny import write_capitals, write_entities, write_plots, write_questions, write_reviews, write_similarities

from raykd.cli import main
from raykd.config.load import load
from raykd.data.guess import look_at
from raykd.search.space import Space


def reviews(folder):
    return write_reviews(folder)


def pictures(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(folder / name / f"{i}.png")
    return folder


def stars(folder):
    folder.mkdir()
    path = folder / "my reviews.csv"
    path.write_text("number;stars;review\n" + "".join(f"{i};{1 + i % 5};film {i} was fine\n" for i in range(40)))
    return path


def pairs(folder):
    folder.mkdir()
    columns = {"premise": ["a", "b"] * 9, "hypothesis": ["c", "d"] * 9, "label": [0, 1, 2] * 6}
    for split in ("train", "validation", "test"):
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def several_labels(folder):
    folder.mkdir()
    columns = {"text": [f"text {i}" for i in range(20)], "labels": [[0], [1, 2], []] * 6 + [[0], [2]], "id": ["x"] * 20}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return folder


def swag(folder):
    folder.mkdir()
    columns = {"sent2": ["a"] * 20, "ending0": ["b"] * 20, "ending1": ["c"] * 20, "label": [0, 1] * 10}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return folder


def table(folder, **columns):
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return folder


def similar(folder):
    """STS-B's kind of data, with names that mean nothing."""
    return table(folder, a=["a man eats", "a dog runs"] * 20, b=["he eats", "it sleeps"] * 20, score=[0.5, 5.0] * 20)


def headline_and_text(folder):
    """The longer text; the other one is no second text as long as nobody says so."""
    texts = [f"a much longer text that says what number {i} is about" for i in range(40)]
    return table(folder, headline=["some news"] * 40, body=texts, spam=[0, 1] * 20, topic=["a", "b", "c", "d"] * 10)


def toxic(folder):
    """A multi-label data set as CSV: a column of 0 and 1 for each label."""
    folder.mkdir()
    lines = [f"{i:04x},you are number {i},{i % 2},{int(i % 3 == 0)},{int(i % 5 == 0)},{i % 7}" for i in range(40)]
    path = folder / "comments.csv"
    path.write_text("\n".join(["id,comment,toxic,rude,threat,annotator", *lines]) + "\n")
    return path


def raw_emotions(folder):
    """A boolean among columns of 0 and 1 is no label, as in the raw files of GoEmotions."""
    found = {"text": [f"so happy {i}" for i in range(40)], "unclear": [False, True] * 20, "joy": [0, 1] * 20}
    return table(folder, **found, anger=[1, 0, 0, 0] * 10)


def names_in_words(folder, kind="string", **more):
    """As WikiANN has them."""
    words, tags = [["Ann", "sleeps"], ["He", "met", "Bob"]] * 10, [[1, 0], [0, 0, 1]] * 10
    columns = {"tokens": words, "ner_tags": tags, "langs": [["en"] * len(row) for row in words], "spans": [["x"]] * 20}
    rows = Dataset.from_dict(more | columns)
    rows = rows.cast_column("tokens", List(Value(kind))).cast_column("ner_tags", List(ClassLabel(names=["O", "B-PER"])))
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    return folder


def conll(folder):
    return names_in_words(folder, id=[str(i) for i in range(20)], pos_tags=[[3, 4], [3, 4, 5]] * 10)


def large_words(folder):
    return names_in_words(folder, "large_string")


def words_and_labels(folder):
    """A text's words and its labels are no words and tags."""
    found = {"body": [f"text {i}" for i in range(20)], "tokens": [["text", str(i)] for i in range(20)]}
    return table(folder, **found, labels=[[0], [1, 2], [], [0]] * 5, stars=[1, 2] * 10)


PARTS = ("train[:80%]", "train[80%:90%]", "train[90%:]")


@pytest.mark.parametrize(
    ("write", "task", "columns", "splits"),
    [
        (reviews, "text-classification", {"text": "text", "label": "label"}, PARTS),
        (write_capitals, "text-generation", {"prompt": "prompt", "completion": "completion"}, PARTS),
        (stars, "text-classification", {"text": "review", "label": "stars"}, PARTS),
        (
            pairs,
            "text-classification",
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
            ("train", "validation", "test"),
        ),
        (write_questions, "question-answering", {n: n for n in ("question", "context", "answers")}, PARTS),
        (write_entities, "token-classification", {"tokens": "tokens", "ner_tags": "ner_tags"}, PARTS),
        (names_in_words, "token-classification", {"tokens": "tokens", "ner_tags": "ner_tags"}, PARTS),
        (conll, "token-classification", {"tokens": "tokens", "ner_tags": "ner_tags"}, PARTS),
        (large_words, "token-classification", {"tokens": "tokens", "ner_tags": "ner_tags"}, PARTS),
        (words_and_labels, "text-classification", {"text": "body", "label": "stars"}, PARTS),
        (several_labels, "multi-label-classification", {"text": "text", "labels": "labels"}, PARTS),
        (
            write_similarities,
            "regression",
            {"text": "sentence1", "text_pair": "sentence2", "label": "score"},
            PARTS,
        ),
        (write_plots, "multiple-choice", {"question": "question", "choices": "choices", "label": "label"}, PARTS),
        (
            swag,
            "multiple-choice",
            {"question": "sent2", "choices": ["ending0", "ending1"], "label": "label"},
            PARTS,
        ),
        (similar, "regression", {"text": "a", "text_pair": "b", "label": "score"}, PARTS),
        (headline_and_text, "text-classification", {"text": "body", "label": "spam"}, PARTS),
        (toxic, "multi-label-classification", {"text": "comment", "labels": ["toxic", "rude", "threat"]}, PARTS),
        (raw_emotions, "multi-label-classification", {"text": "text", "labels": ["joy", "anger"]}, PARTS),
        (pictures, "image-classification", {"image": "image", "label": "label"}, PARTS),
    ],
)
def test_a_job_for_data_that_people_have(tmp_path, write, task, columns, splits):
    source = write(tmp_path / "data")
    found = look_at(str(source))
    assert (found.task, found.columns) == (task, columns)
    path = tmp_path / "job.yaml"
    assert (
        main(["init", str(source), "--job", str(path), "--teacher", "one", "--teacher", "two", "--student", "s"]) == 0
    )
    config = load(path)
    assert config.task.type == task
    assert config.task.tolerance == (0.5 if task == "regression" else None), "a tenth of the range"
    assert (config.data.train, config.data.validation, config.data.test) == splits
    assert {role: config.data.columns.get(role, role) for role in columns} == columns
    assert [(t.model.pretrained, t.recipe.seed) for t in config.teachers] == [("one", 101), ("two", 102)]
    assert not {t.recipe.seed for t in config.teachers} & {*config.student.seeds}, "it would be the baseline's training"
    assert config.student.model.pretrained == "s"
    assert {arm.name for arm in Space(config).arms} >= {"kd", "annealing", "weighted", "born_again"}  # `raykd sweep`


def test_a_lone_teacher_is_not_weighted(tmp_path):
    path = tmp_path / "job.yaml"
    assert main(["init", str(reviews(tmp_path / "data")), "--job", str(path), "--teacher", "one"]) == 0
    config = load(path)
    assert "weighted" not in path.read_text()
    assert "method.W" not in config.search.space
    assert config.search.space["method.type"] == ["kd", "annealing", "born_again"]


@pytest.mark.parametrize(
    ("write", "unused", "uses"),
    [
        (reviews, (), ()),
        (stars, ("number",), ()),
        (
            headline_and_text,
            ("headline", "topic"),
            ("data.columns.text_pair to headline", "data.columns.label to topic"),
        ),
        (toxic, ("id", "annotator"), ()),
        (raw_emotions, ("unclear",), ()),
        (write_questions, (), ()),
    ],
)
def test_what_the_job_does_not_use_is_said(tmp_path, capsys, write, unused, uses):
    """On the screen and in the job."""
    source, path = str(write(tmp_path / "data")), tmp_path / "job.yaml"
    assert main(["init", source, "--job", str(path), "--teacher", "one"]) == 0
    said, job = capsys.readouterr().out, path.read_text()
    assert look_at(source).unused == unused
    for text in (said, job):
        assert (f"not used: {', '.join(unused)}\n" in text) == bool(unused)
        assert text.count("set data.columns") == len(uses)
        assert all(use in text for use in uses)


def test_columns_of_0_and_1_beside_a_label_are_no_labels(tmp_path):
    """But the user is told how to make them such."""
    columns = {"text": ["so good", "so bad"] * 20, "label": [0, 1] * 20, "rude": [1, 0, 0, 0] * 10}
    found = look_at(str(table(tmp_path / "data", **columns)))
    assert (found.task, found.columns) == ("text-classification", {"text": "text", "label": "label"})
    [several, another] = found.uses
    assert "{text: text, labels: [label, rude]}" in several
    assert another.endswith("to rude")


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("left_text", "right_text"), ("left_text", "right_text")),
        (("text_b", "text_a"), ("text_a", "text_b")),
        (("Question1", "Question2"), ("Question1", "Question2")),
        (("query", "document"), ("query", "document")),
        (("text1", "text2", "text3"), None),
        (("title", "body"), None),
    ],
)
def test_pairs_of_texts_by_their_names(tmp_path, names, pair):
    columns = {name: [f"some words {name} {i}" for i in range(40)] for name in names}
    found = look_at(str(table(tmp_path / "data", **columns, label=["x", "y"] * 20))).columns
    assert (found["text"], found.get("text_pair")) == pair if pair else "text_pair" not in found


@pytest.mark.parametrize(("rows", "epochs"), [(100, 20), (2500, 5), (40_000, 3)])
def test_few_rows_get_more_epochs(tmp_path, rows, epochs):
    """2,500 rows are 2,000 to train on, 63 steps of 32 an epoch."""
    columns = {"text": [f"words {i}" for i in range(rows)], "label": [i % 2 for i in range(rows)]}
    source = table(tmp_path / "data", **columns)
    assert main(["init", str(source), "--job", str(tmp_path / "job.yaml"), "--teacher", "one"]) == 0
    assert load(tmp_path / "job.yaml").training.epochs == epochs


def test_a_single_column_of_texts_is_for_a_language_model(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("a line of text\n" * 40)
    found = look_at(str(path))
    assert (found.task, found.columns) == ("text-generation", {"text": "text"})


def test_conversations_get_models_with_a_chat_template(tmp_path):
    rows = tmp_path / "chats.jsonl"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text("\n".join(json.dumps({"messages": talk}) for _ in range(20)))
    assert main(["init", str(rows), "--job", str(tmp_path / "job.yaml")]) == 0
    config = load(tmp_path / "job.yaml")
    assert config.task.type == "text-generation"
    names = {config.student.model.pretrained, *(teacher.model.pretrained for teacher in config.teachers)}
    assert all(name.endswith("-Instruct") for name in names)


def test_a_job_that_exists_stays(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("name: mine\n")
    assert main(["init", "builtin:digits", "--job", str(path)]) == 2
    assert "--job" in capsys.readouterr().err
    assert path.read_text() == "name: mine\n"


def test_data_without_labels_is_refused_with_its_columns(tmp_path, capsys):
    path = tmp_path / "texts.csv"
    path.write_text("first,second\n" + "".join(f"text {i},other {i}\n" for i in range(40)))
    assert main(["init", str(path), "--job", str(tmp_path / "job.yaml")]) == 2
    assert "first, second" in capsys.readouterr().err


def test_numbers_with_decimal_commas_are_named(tmp_path, capsys):
    """A spreadsheet in many languages writes them so, and separates its columns by semicolons."""
    path = tmp_path / "scores.csv"
    rows = "".join(f"text {i};other {i};{i // 10},{i % 10}\n" for i in range(40))
    path.write_text("first;second;points\n" + rows)
    assert main(["init", str(path), "--job", str(tmp_path / "job.yaml")]) == 2
    assert "the numbers in points, write them with a decimal point" in capsys.readouterr().err
