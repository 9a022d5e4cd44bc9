"""Predictions of rows without labels, against transformers' own."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny import electra, llama, reviews_job, save_bytes_tokenizer, save_tokenizer, write_entities, write_reviews

from raykd.cli import main
from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.schema import ModelConfig
from raykd.models.folders import read_about, write_about
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.predictions.output import open_output
from raykd.predictions.predictor import Predictor
from raykd.tracking.experiment import Tracking


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A classifier with weights that differ from 0, saved as transformers saves one, and its data."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reviews")
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(folder / "model"))
    torch.manual_seed(0)
    values = electra(initializer_range=1.0, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**values)).eval()
    model.save_pretrained(folder / "model")
    write_reviews(folder / "data")
    rows = pq.read_table(folder / "data" / "train.parquet")
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in rows["text"].to_pylist()]
    return folder, rows["text"].to_pylist(), torch.stack(logits).double().softmax(-1).numpy()


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_classes_are_those_of_the_model_alone(reviews, tmp_path, kind):
    folder, texts, expected = reviews
    with (tmp_path / "new.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["number", "review"])
        writer.writeheader()
        writer.writerows({"number": i, "review": text} for i, text in enumerate(texts))
    output = tmp_path / f"out.{kind}"
    column = "data.columns.text=review"
    assert main(["predict", str(folder / "model"), str(tmp_path / "new.csv"), column, "--output", str(output)]) == 0
    if kind == "parquet":
        rows = pq.read_table(output).to_pylist()
    elif kind == "csv":
        rows = [row | {"number": int(row["number"])} for row in csv.DictReader(output.open())]
        rows = [row | {"probabilities": json.loads(row["probabilities"])} for row in rows]
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(len(texts)))
    assert [row["review"] for row in rows] == texts
    assert {row["prediction"] for row in rows} == {"bad", "good"}, "the case would prove nothing"
    for row, (bad, good) in zip(rows, expected, strict=True):
        assert row["prediction"] == ("good" if good > bad else "bad")
        assert row["probabilities"]["good"] == pytest.approx(good, abs=2e-3)  # logits are rounded to fp16


def test_parquet_has_the_types_of_the_rows_and_not_of_their_first_chunk(tmp_path):
    scores = pa.struct([("pos", pa.float32())])  # of an earlier prediction, which gives way to the new one
    columns = pa.schema([("note", pa.string()), ("big", pa.uint64()), ("probabilities", scores), ("gone", pa.string())])
    own = ["note", "big"]
    first = {"note": None, "big": 1, "prediction": [], "probabilities": {"a": 0.1}}
    later = {"note": "x", "big": 2**63, "prediction": ["a"], "probabilities": {"a": 0.75}}
    path = tmp_path / "out.parquet"
    with open_output(path, sys.stdout, columns) as out:
        out.write([first], own)
        out.write([later], own)
    assert pq.read_table(path).to_pylist() == [first, later]
    with open_output(tmp_path / "other.parquet", sys.stdout, columns) as out:
        out.write([{"row": 0, "prediction": 0.5}], ["row"])
        with pytest.raises(ConfigError, match="another type") as error:
            out.write([{"row": 1, "prediction": "a"}], ["row"])
    assert (error.value.key, error.value.value) == ("--output", tmp_path / "other.parquet")


def test_what_json_does_not_have_is_null(tmp_path):
    row = {"note": float("nan"), "more": [0.5, float("inf")], "prediction": {"a": float("nan")}}
    for name in ("out.jsonl", "out.csv"):
        with open_output(tmp_path / name, sys.stdout, pa.schema([])) as out:
            out.write([row], ["note", "more"])
    strict = {"parse_constant": lambda name: pytest.fail(name)}
    assert json.loads((tmp_path / "out.jsonl").read_text(), **strict) == {
        "note": None, "more": [0.5, None], "prediction": {"a": None},
    }  # fmt: skip
    [cells] = csv.DictReader((tmp_path / "out.csv").open())
    assert json.loads(cells["more"], **strict) == [0.5, None]


def test_a_reader_that_has_enough_is_no_error(reviews):
    folder, _, _ = reviews
    command = [sys.executable, "-m", "raykd", "predict", str(folder / "model"), str(folder / "data"), "data.test=train"]
    read, write = os.pipe()
    os.close(read)
    made = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (made.returncode, "Traceback" in made.stderr, "BrokenPipe" in made.stderr) == (0, False, False)


def test_without_an_output_rows_go_to_the_screen(reviews, capsys):
    folder, texts, _ = reviews
    assert main(["predict", str(folder / "model"), str(folder / "data"), "data.test=train[:3]"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["text"] for line in said.out.splitlines()] == texts[:3]
    assert "text-classification" in said.err


def test_a_student_whose_job_had_settings_that_its_task_ignores(reviews, tmp_path):
    """Earlier versions took and saved them."""
    model = shutil.copytree(reviews[0] / "model", tmp_path / "model")
    about = {"type": "text-classification", "stride": 64, "max_answer_length": 30, "tolerance": None, "max_length": 16}
    write_about(model, about, {}, {})
    assert Predictor(ModelConfig(pretrained=str(model))).task.settings.max_length == 16
    with pytest.raises(ConfigError, match=r"task\.stride = 32"):
        Predictor(ModelConfig(pretrained=str(model)), {"stride": 32})


def test_the_columns_of_a_students_own_data_are_known(reviews, tmp_path):
    """Unless another column is named, or the rows have none of that name."""
    folder, texts, _ = reviews
    model = shutil.copytree(folder / "model", tmp_path / "model")
    write_about(model, {"type": "text-classification"}, {}, {"text": "review", "label": "stars"})
    predictor = Predictor(ModelConfig(pretrained=str(model)))
    rows = Dataset.from_dict({"review": texts[:4], "text": texts[4:8], "other": texts[8:12]})
    assert predictor.inputs(rows, {})["text"][:] == texts[:4]
    assert predictor.inputs(rows, {"text": "other"})["text"][:] == texts[8:12]
    assert predictor.inputs(rows.remove_columns("review"), {})["text"][:] == texts[4:8]
    with pytest.raises(ConfigError) as error:
        predictor.inputs(rows.select_columns("other"), {})
    assert (error.value.key, error.value.value) == ("data.columns.text", "review")
    assert "nor text" in error.value.reason, "the task's own name works, too"
    with pytest.raises(ConfigError) as error:
        predictor.inputs(rows, {"text": "body"})
    assert (error.value.key, error.value.value) == ("data.columns.text", "body")


def test_a_student_notes_the_columns_that_it_learns_from(tmp_path):
    """Also those that the data calls as the task does."""
    tree = reviews_job(tmp_path)
    path = tmp_path / "data" / "train.parquet"
    rows = pq.read_table(path).to_pydict()
    pq.write_table(pa.table({"review": rows["text"], "text_pair": rows["text"], "label": rows["label"]}), path)
    config = build(override(tree, {"data.columns": {"text": "review"}}))
    [job] = student_jobs(config, prepare(config), FINETUNE, ())
    assert job.metadata["columns"] == {"text": "review", "text_pair": "text_pair"}


@pytest.mark.parametrize("name", ["text_pair", "reply"])
def test_a_model_of_pairs_does_not_predict_single_texts(reviews, tmp_path, name):
    folder, texts, _ = reviews
    model = shutil.copytree(folder / "model", tmp_path / "model")
    write_about(model, {"type": "text-classification"}, {}, {"text": "text", "text_pair": name})
    predictor = Predictor(ModelConfig(pretrained=str(model)))
    rows = Dataset.from_dict({"text": texts[:4], name: texts[4:8]})
    assert predictor.inputs(rows, {})["text_pair"][:] == texts[4:8]
    with pytest.raises(ConfigError) as error:
        predictor.inputs(rows.select_columns("text"), {})
    assert (error.value.key, error.value.value) == ("data.columns.text_pair", name)
    alone = Predictor(ModelConfig(pretrained=str(folder / "model")))
    assert alone.inputs(rows.select_columns("text"), {}).column_names == ["text"], "of other models it is not known"


def test_a_model_of_single_texts_reads_no_pairs(reviews, tmp_path):
    """Unless the user names the second column."""
    folder, texts, _ = reviews
    model = shutil.copytree(folder / "model", tmp_path / "model")
    write_about(model, {"type": "text-classification"}, {}, {"text": "text", "label": "label"})
    predictor = Predictor(ModelConfig(pretrained=str(model)))
    rows = Dataset.from_dict({"text": texts[:4], "text_pair": texts[4:8]})
    assert predictor.inputs(rows, {}).column_names == ["text"]
    assert predictor.inputs(rows, {"text_pair": "text_pair"}).column_names == ["text", "text_pair"]
    alone = Predictor(ModelConfig(pretrained=str(folder / "model")))
    assert alone.inputs(rows, {}).column_names == ["text", "text_pair"], "of other models it is not known"


def test_a_column_that_the_task_does_not_have_is_refused(reviews):
    folder, texts, _ = reviews
    predictor = Predictor(ModelConfig(pretrained=str(folder / "model")))
    rows = Dataset.from_dict({"text": texts[:4], "review": texts[4:8]})
    with pytest.raises(ConfigError) as error:
        predictor.inputs(rows, {"texts": "review"})
    assert (error.value.key, error.value.value) == ("data.columns.texts", "review")
    assert predictor.inputs(rows, {"text": "review", "label": "stars"})["text"][:] == texts[4:8]


def test_paths_of_pictures_start_at_their_file(tmp_path):
    from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = AutoConfig.for_model("vit", image_size=8, patch_size=4, **small)
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(tmp_path / "data" / f"{i}.png")
    (tmp_path / "data" / "new.csv").write_text("file\n0.png\n1.png\n")
    output = tmp_path / "out.csv"
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "data" / "new.csv"), "data.columns.image=file"]
    assert main([*arguments, "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.open()))
    assert [row["file"] for row in rows] == ["0.png", "1.png"]
    assert {row["prediction"] for row in rows} <= {"LABEL_0", "LABEL_1"}, "transformers' names, which it does not save"


def test_questions_need_no_ids(tmp_path):
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(**electra())).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    rows = Dataset.from_dict({"question": ["who ?", "where ?"], "context": ["a man .", "a town ."]})
    inputs = Predictor(ModelConfig(pretrained=str(tmp_path))).inputs(rows, {})
    assert len({*inputs["id"][:]}) == 2


def test_mlflow_loads_it_as_a_function(reviews, migrated_store, tmp_path, monkeypatch):
    """What a user does in another program: the registered model by its alias."""
    import mlflow

    folder, texts, expected = reviews
    uri = f"sqlite:///{shutil.copy(migrated_store, tmp_path / 'mlflow.db')}"
    tracking = Tracking(uri, "reviews")
    with tracking.start("student", params={}, tags={}) as run:
        tracking.register(run.model(folder / "model", "student"), "reviews", "best")
    # Not by mlflow.set_registry_uri: it sets the variable too, and None does not take it back.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    model = mlflow.pyfunc.load_model("models:/reviews@best")
    found = model.predict(pandas.DataFrame({"text": texts[:5], "id": range(5)}, index=[*"abcde"]))
    assert found.index.tolist() == [*"abcde"]
    assert found["prediction"].tolist() == ["good" if good > bad else "bad" for bad, good in expected[:5]]


def test_the_tags_of_a_row_that_is_split(tmp_path):
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    write_entities(tmp_path / "data", rows=8)
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path / "model"))
    torch.manual_seed(0)
    tags = dict(enumerate(("O", "B-person", "I-person", "B-location")))
    values = electra(initializer_range=1.0, id2label=tags, label2id={name: i for i, name in tags.items()})
    model = AutoModelForTokenClassification.from_config(AutoConfig.for_model(**values)).eval()
    model.save_pretrained(tmp_path / "model")
    write_about(tmp_path / "model", {"type": "token-classification", "max_length": 24}, {}, {})
    output = tmp_path / "out.jsonl"
    source = ["predict", str(tmp_path / "model"), str(tmp_path / "data"), "data.test=train", "--output", str(output)]
    assert main(source) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(row["prediction"]) for row in rows] == [len(row["tokens"]) for row in rows]
    long = rows[0]
    assert len(long["tokens"]) > 24
    for first in (0, 22, 44):  # a window has room for 22 words of one token each
        words = long["tokens"][first : first + 22]
        tokens = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            chosen = model(**tokens).logits[0, 1:-1].argmax(-1)
        assert long["prediction"][first : first + 22] == [tags[tag] for tag in chosen.tolist()]


def test_what_a_student_knows_about_itself(tmp_path):
    assert read_about(tmp_path) == {}
    write_about(tmp_path, {"type": "question-answering", "stride": 8}, {"no_answer_threshold": 0.25}, {})
    assert read_about(tmp_path)["task"]["stride"] == 8
    assert read_about(tmp_path)["calibration"] == {"no_answer_threshold": 0.25}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{data}/missing.csv"], ["data.source", "missing.csv"]),
        (["{data}"], ["data.columns.text", "text"]),
        (["{data}", "training.steps=3"], ["training.steps", "model., data. or task."]),
        (["{data}", "task.max_length=1"], ["task.max_length", "8"]),
        (["{data}", "task.type=image-classification"], ["model.tokenizer"]),
        (["{reviews}", "data.test=train", "--output", "out.xlsx"], ["--output", ".parquet"]),
        (["{reviews}", "data.test=train", "--output", "{data}/no/folder.csv"], ["--output", "folder"]),
    ],
)
def test_an_error_is_one_line(reviews, tmp_path, capsys, arguments, named):
    folder = reviews[0]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.csv").write_text("review\ngood film\n")
    given = [text.format(data=tmp_path / "data", reviews=folder / "data") for text in arguments]
    assert main(["predict", str(folder / "model"), *given]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for text in named:
        assert text in error


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A causal language model of 64 positions that reads at most 16 tokens of a row."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save_bytes_tokenizer(tmp_path_factory.mktemp("language") / "model")
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**llama())).save_pretrained(folder)
    write_about(folder, {"type": "text-generation", "max_length": 16}, {}, {})
    return folder


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"prompt": "a prompt of 20 bytes", "completion": "b"}], ["data.test = row 0", "none of its first 16 tokens"]),
        ([{"body": "a"}], ["data.columns", "the data has none of the columns", "it has body"]),
        ([{"prompt": "a", "completion": ""}], ["data.test = row 0", "its completion is empty"]),
        ([{"prompt": ""}], ["data.test = row 0", "its prompt has no token"]),
        ([{"prompt": "a"}] * 2 + [{"prompt": ""}], ["data.test = row 2", "its prompt has no token"]),
        ([{"messages": [{"role": "user", "content": "a"}]}], ["tokenizer", "no chat template"]),
    ],
)
def test_rows_that_a_language_model_cannot_read(language_model, tmp_path, capsys, monkeypatch, rows, named):
    """The line does not speak of data.transfer, which a prediction does not have."""
    monkeypatch.setattr("raykd.predictions.predictor.CHUNK", 2)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["predict", str(language_model), str(file)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "transfer" not in error
    for text in named:
        assert text in error


def test_a_plain_prompt_is_no_message(language_model, tmp_path, capsys):
    folder = shutil.copytree(language_model, tmp_path / "model")
    write_about(folder, {"type": "text-generation", "max_length": 16}, {}, {"messages": "talk"})
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    assert main(["predict", str(folder), str(tmp_path / "rows.jsonl")]) == 2
    assert "data.columns.prompt = prompt: the model was trained on messages" in capsys.readouterr().err


def test_messages_that_the_chat_template_refuses(language_model, tmp_path, capsys):
    folder = shutil.copytree(language_model, tmp_path / "model")
    save_bytes_tokenizer(folder, chat_template="{{ raise_exception('only the user speaks') }}")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "system", "content": "a"}]}) + "\n")
    assert main(["predict", str(folder), str(file)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "data.test = row 0: the chat template does not take its messages (only the user speaks)" in error


def test_what_is_cut_of_a_row_is_said(language_model, tmp_path, capsys, caplog):
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,completion\na,{'b' * 20}\na,b\n")
    with caplog.at_level("INFO", "raykd"):
        assert main(["predict", str(language_model), str(file)]) == 0
    assert "1 of 2 rows are longer than task.max_length = 16 tokens and truncated: 6 of 23 tokens" in caplog.text
    assert [json.loads(line)["tokens"] for line in capsys.readouterr().out.splitlines()] == [15, 2]


def test_a_model_of_no_task_is_refused(tmp_path, capsys):
    from transformers import AutoConfig, AutoModelForMaskedLM

    AutoModelForMaskedLM.from_config(AutoConfig.for_model(**electra())).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    assert main(["predict", str(tmp_path / "model"), "builtin:digits"]) == 2
    assert "ElectraForMaskedLM" in capsys.readouterr().err
