"""Two good jobs, bad models and data in the same folder, and a fixture that runs a command which must be refused."""

import json
import shutil
import signal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from bad_case import Case
from tiny import electra, questions_job, reviews_job, save_tokenizer
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from raykd.cli import main


@pytest.fixture(scope="session")
def jobs(tmp_path_factory) -> Path:
    """Two good jobs, `reviews.yaml` and `questions.yaml`, and the bad files that cases name."""
    folder = tmp_path_factory.mktemp("jobs")
    for name, tree in (("reviews", reviews_job(folder / "r")), ("questions", questions_job(folder / "q"))):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    write_models(folder)
    write_data(folder)
    (folder / "syntax.yaml").write_text("name: x\ntask: {type: text-classification\n")
    (folder / "twice.yaml").write_text("name: x\nname: y\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x81")
    (folder / "list.yaml").write_text("- name\n")
    (folder / "typo.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((folder / "reviews.yaml").read_text()), "dta": 1})
    )
    return folder


def write_models(folder: Path) -> None:
    """Teachers as users have them, and folders that are no models."""
    for name, labels in {
        "good": ["bad", "good"],
        "upper": ["BAD", "GOOD"],
        "unnamed": ["LABEL_0", "LABEL_1"],
        "reversed": ["good", "bad"],
        "reversed_upper": ["GOOD", "BAD"],
        "numbered": ["0", "1"],
        "renumbered_labels": ["LABEL_1", "LABEL_0"],
        "twice_bad": ["bad", "Bad"],
        "other": ["cat", "dog"],
        "three": ["bad", "good", "ugly"],
    }.items():
        config = AutoConfig.for_model(**electra(), id2label=dict(enumerate(labels)))
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / name)
        save_tokenizer(folder / name)
    AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(**electra())).save_pretrained(folder / "reader")
    save_tokenizer(folder / "reader")

    shutil.copytree(folder / "good", folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    torch.save({}, folder / "pickled" / "pytorch_model.bin")
    shutil.copytree(folder / "good", folder / "truncated")
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    shutil.copytree(folder / "good", folder / "configless")
    (folder / "configless" / "config.json").unlink()
    shutil.copytree(folder / "good", folder / "tokenless")
    for file in (folder / "tokenless").glob("*token*"):
        file.unlink()
    shutil.copytree(folder / "good", folder / "own_code")
    about = {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Mine"},
        "architectures": ["MineForQuestionAnswering"],
    }
    (folder / "own_code" / "config.json").write_text(json.dumps(about))

    # Tokenizers: one that numbers words otherwise but cuts alike, one that cuts a word in two, one without padding.
    for name in ("renumbered", "cutting", "unpadded"):
        save_tokenizer(folder / name)
        path = folder / name / "tokenizer.json"
        state = json.loads(path.read_text())
        words = state["model"]["vocab"]
        if name == "renumbered":
            words["paris"], words["rome"] = words["rome"], words["paris"]
        elif name == "cutting":
            words["par"], words["##is"] = words.pop("paris"), len(words)
        path.write_text(json.dumps(state))
    settings = folder / "unpadded" / "tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "pad_token"}))


def write_data(folder: Path) -> None:
    reviews = pq.read_table(folder / "r" / "data" / "train.parquet").to_pydict()
    texts, labels = reviews["text"][:20], reviews["label"][:20]
    for name, columns in {
        "seven": {"text": texts, "label": [*labels[:3], 7, *labels[4:]]},
        "hidden": {"text": texts, "label": [-1] * 20},
        "words": {"text": texts, "label": ["good", "awful"] * 10},
        "halves": {"text": texts, "label": [0.5] * 20},
        "unlabelled": {"text": texts, "label": [None, *labels[1:]]},
        "textless": {"text": [*texts[:2], None, *texts[3:]], "label": labels},
        "numbers": {"text": list(range(20)), "label": labels},
        "one_class": {"text": texts, "label": [0] * 20},
        "pairs": {"text": texts, "text_pair": texts, "label": labels},
    }.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), folder / "none.parquet"
    )
    (folder / "none.csv").write_text("text,label\n")
    (folder / "broken.parquet").write_bytes(b"no parquet")
    (folder / "broken.jsonl").write_text('{"text": "a", "label": 1}\n{"text":')
    (folder / "table.xlsx").write_bytes(b"")
    (folder / "empty").mkdir()
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "nice"])})
    datasets.Dataset.from_dict({"text": texts, "label": labels}, classes).to_parquet(folder / "nice.parquet")
    questions = pq.read_table(folder / "q" / "data" / "train.parquet").slice(0, 12).to_pydict()
    wrong = [dict(a) for a in questions["answers"]]
    wrong[1] = {"text": wrong[1]["text"], "answer_start": [wrong[1]["answer_start"][0] + 1]}
    pq.write_table(pa.table({**questions, "answers": wrong}), folder / "wrong_answer.parquet")
    kept = {True: [], False: []}  # the rows whose question has an answer, and the others
    for i, answer in enumerate(questions["answers"]):
        kept[bool(answer["text"])].append(i)
    for name, rows in (("answerable", kept[True]), ("unanswerable", kept[False])):
        columns = {column: [values[i] for i in rows] for column, values in questions.items()}
        schema = pq.read_schema(folder / "q" / "data" / "train.parquet")
        pq.write_table(pa.table(columns, schema=schema), folder / f"{name}.parquet")
    pq.write_table(pa.table({**questions, "answers": [t["text"] for t in wrong]}), folder / "bare_answers.parquet")


@pytest.fixture(autouse=True)
def _handlers():
    """`main` sets a handler for SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refused(jobs, capsys, monkeypatch):
    """A function that runs a command on a case and returns its one line on stderr. It fails if anything was started."""

    def not_now(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", not_now)
    monkeypatch.chdir(jobs)

    def run(command: str, case: Case) -> str:
        code = main([command, case.job, *case.overrides])
        line = capsys.readouterr().err
        assert code == 2, line
        assert line.count("\n") == 1, line
        assert line.startswith("raykd: ")
        assert len(line) < 600
        for name in "rq":
            assert not (jobs / name / "runs" / "mlflow.db").exists()
            assert not (jobs / name / "runs" / "store" / "trainings").exists()
            assert not (jobs / name / "runs" / "store" / "logits").exists()
            assert not list((jobs / name / "runs").glob("*/config.yaml"))
        return line.removeprefix("raykd: ").rstrip("\n")

    return run
