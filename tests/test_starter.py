"""The first job that `raykd init` writes: its guesses, and that it is valid."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import write_capitals, write_entities, write_plots, write_questions, write_reviews, write_similarities

from raykd.cli import main
from raykd.config.load import load
from raykd.data.starter import look_at
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


PARTS = ("train[:80%]", "train[80%:90%]", "train[90%:]")


@pytest.mark.parametrize(
    ("write", "task", "columns", "splits"),
    [
        (reviews, "text-classification", {"text": "text", "label": "label"}, PARTS),
        (write_capitals, "text-generation", {}, PARTS),
        (stars, "text-classification", {"text": "review", "label": "stars"}, PARTS),
        (
            pairs,
            "text-classification",
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
            ("train", "validation", "test"),
        ),
        (write_questions, "question-answering", {}, PARTS),
        (write_entities, "token-classification", {"tokens": "tokens", "ner_tags": "ner_tags"}, PARTS),
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
    assert [(t.model.pretrained, t.recipe.seed) for t in config.teachers] == [("one", 1), ("two", 2)]
    assert config.student.model.pretrained == "s"
    assert {arm.name for arm in Space(config).arms} >= {"kd", "annealing", "weighted", "born_again"}  # `raykd sweep`


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
