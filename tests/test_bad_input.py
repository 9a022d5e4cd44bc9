"""What bad input gets: one line that names key, value, reason and mend, before anything starts; exit code 2."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from tiny import electra, questions_job, reviews_job, save_tokenizer
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from raykd.cli import main
from raykd.config.load import load
from raykd.plan.prepare import prepare
from raykd.plan.trainings import teacher_jobs
from raykd.tasks import Batch
from raykd.tasks.text_classification import TextClassification
from raykd.training.loop import train


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Path:
    """Two good jobs, `reviews.yaml` and `questions.yaml`, and beside them what is wrong with others."""
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
    """Teachers as a user may have them, and folders that are none."""
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
    """`main` sets one, as a program may."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refused(jobs, capsys, monkeypatch):
    """Runs a command that must be refused; returns its one line on stderr. Nothing may have been started."""

    def not_now(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", not_now)
    monkeypatch.chdir(jobs)

    def run(command: str, job: str, *overrides: str) -> str:
        code = main([command, job, *overrides])
        told = capsys.readouterr().err
        assert code == 2, told
        assert told.count("\n") == 1, told
        assert told.startswith("raykd: ")
        assert len(told) < 600
        for name in "rq":
            assert not (jobs / name / "runs" / "mlflow.db").exists()
            assert not (jobs / name / "runs" / "store" / "trainings").exists()
            assert not (jobs / name / "runs" / "store" / "logits").exists()
            assert not list((jobs / name / "runs").glob("*/config.yaml"))
        return told.removeprefix("raykd: ").rstrip("\n")

    return run


REVIEWS, QUESTIONS = "reviews.yaml", "questions.yaml"
GIVEN = "teachers.a.recipe=null"
LIVE = "logits.mode=live"

# job, overrides; then the line's key, its value, and words of its reason and of its mend.
SCHEMA = {
    "unknown key": (REVIEWS, ["method.alfa=0.5"], "method.alfa", "0.5", "no such key", "Did you mean alpha?"),
    "unknown section": ("typo.yaml", [], "dta", "1", "no such key", "Did you mean data?"),
    "bare no among names": (
        REVIEWS,
        ["task.labels=[no, yes]"],
        "task.labels.0",
        "False",
        "YAML reads a bare no",
        'Quote it: "no"',
    ),
    "unknown key of a list's item": (
        REVIEWS,
        ["teachers.a.model.tokeniser=x"],
        "teachers.0.model.tokeniser",
        "x",
        "no such key",
        "Did you mean tokenizer?",
    ),
    "misspelt key that is needed": (REVIEWS, ["data={sorce: x}"], "data.sorce", "x", "", "Did you mean source?"),
    "key like no other": (REVIEWS, ["ray.zzz=1"], "ray.zzz", "1", "", "Known here: address, max_retries, timeout_s"),
    "unknown key of a member's training": (
        REVIEWS,
        ["student.training.epoch=1"],
        "student.training.epoch",
        "1",
        "no such key",
        "Did you mean epochs?",
    ),
    "missing key": (REVIEWS, ["task={}"], "task.type", "(missing)", "needed", "Add it: the kind of task"),
    "W above 1": (REVIEWS, ["method=weighted", "method.W=1.5"], "method.W", "1.5", "from 0 to 1", "from 0 to 1"),
    "W below 0": (REVIEWS, ["method=weighted", "method.W=-0.1"], "method.W", "-0.1", "from 0 to 1", "from 0 to 1"),
    "W without a use": (REVIEWS, ["method=kd", "method.W=0.5"], "method.W", "0.5", "kd does not use it", "Remove it"),
    "T of 0": (REVIEWS, ["method.temperature=0"], "method.temperature", "0", "above 0", "Give a value above 0"),
    "T below 0": (REVIEWS, ["method.temperature=-2"], "method.temperature", "-2", "above 0", "Give a value above 0"),
    "T without end": (REVIEWS, ["method.temperature=.inf"], "method.temperature", "inf", "not finite", "above 0"),
    "alpha above 1": (REVIEWS, ["method.alpha=1.01"], "method.alpha", "1.01", "from 0 to 1", "from 0 to 1"),
    "alpha below 0": (REVIEWS, ["method.alpha=-1"], "method.alpha", "-1", "from 0 to 1", "from 0 to 1"),
    "alpha that is no number": (REVIEWS, ["method.alpha=much"], "method.alpha", "much", "not a number", "from 0 to 1"),
    "alpha that is not a number": (REVIEWS, ["method.alpha=.nan"], "method.alpha", "nan", "not finite", "from 0 to 1"),
    "unknown method": (
        REVIEWS,
        ["method=weigted"],
        "method.type",
        "weigted",
        "no such choice",
        "Did you mean weighted?",
    ),
    "unknown task": (REVIEWS, ["task.type=nli"], "task.type", "nli", "", "text-classification, question-answering"),
    "unknown teacher": (REVIEWS, ["method.teacher=z"], "method.teacher", "z", "the teachers are a, b", "Name one"),
    "section that is a number": (REVIEWS, ["data=3"], "data", "3", "not a mapping of keys", "source, name, revision"),
    "number that is a list": (
        REVIEWS,
        ["training.steps=[1]"],
        "training.steps",
        "[1]",
        "not a whole number",
        "at least 1",
    ),
    "seed that is a word": (REVIEWS, ["student.seed=first"], "student.seed", "first", "not a whole number", "a list"),
    "no seed": (REVIEWS, ["student.seed=[]"], "student.seed", "[]", "there is none", "[0, 1, 2]"),
    "a seed twice": (REVIEWS, ["student.seed=[1, 1]"], "student.seed", "[1, 1]", "twice", "Give each seed once"),
    "steps and epochs": (
        REVIEWS,
        ["student.training={steps: 3, epochs: 2}"],
        "student.training.steps",
        "3",
        "epochs = 2 is given too",
        "Remove one",
    ),
    "folds of a given checkpoint": (
        REVIEWS,
        [GIVEN, "teachers.a.folds=4"],
        "teachers.0.folds",
        "4",
        "a is a given checkpoint",
        "Give it a recipe",
    ),
    "no teacher": (REVIEWS, ["teachers=[]"], "teachers", "[]", "empty", "at least one"),
    "two teachers of a name": (REVIEWS, ["teachers.1.name=a"], "teachers", "a", "two teachers", "its own name"),
    "a teacher called as the ensemble": (
        REVIEWS,
        ["teachers.1.name=ensemble"],
        "teachers",
        "ensemble",
        "table",
        "Rename",
    ),
    "a name that is a path": (REVIEWS, ["name=../x"], "name", "../x", "letters, digits", "another name"),
    "a name that the store has": (REVIEWS, ["name=store"], "name", "store", "another thing", "another name"),
    "a class twice": (REVIEWS, ["task.labels=[a, a]"], "task.labels", "['a', 'a']", "twice", "Name every class once"),
    "classes in QA": (QUESTIONS, ["task.labels=[a, b]"], "task.labels", "['a', 'b']", "no classes", "Remove it"),
    "model of no origin": (
        REVIEWS,
        ["student.model.config=null"],
        "student.model.config",
        "None",
        "not a mapping",
        "mapping of keys",
    ),
    "model of no kind": (
        REVIEWS,
        ["student.model={}"],
        "student.model",
        "{}",
        "neither pretrained nor a config",
        "Give a hub id or a folder",
    ),
    "unknown mode of logits": (REVIEWS, ["logits.mode=lve"], "logits.mode", "lve", "no such choice", "mean live?"),
    "unknown mode as one word": (
        REVIEWS,
        ["logits=keep"],
        "logits.mode",
        "keep",
        "no such choice",
        "one of stored, live",
    ),
    "logits that are a number": (REVIEWS, ["logits=3"], "logits", "3", "not a mapping of keys", "mode, "),
    "shift above a half": (REVIEWS, ["data.augment.shift=0.6"], "data.augment.shift", "0.6", "to 0.5", "from 0 to 0.5"),
    "rotation below 0": (REVIEWS, ["data.augment.rotate=-5"], "data.augment.rotate", "-5", "to 180", "from 0 to 180"),
    "no word left": (REVIEWS, ["data.augment.drop_words=1"], "data.augment.drop_words", "1", "below 1", "and below 1"),
    "unknown augmentation": (
        REVIEWS,
        ["data.augment.drop_word=0.1"],
        "data.augment.drop_word",
        "0.1",
        "no such key",
        "Did you mean drop_words?",
    ),
    "augmentation that changes nothing": (
        REVIEWS,
        [LIVE, "data.augment={}"],
        "data.augment",
        "{}",
        "it changes nothing",
        "Set one of shift, rotate, drop_words, swap_words, or remove it",
    ),
    "augmentation of zeros": (
        REVIEWS,
        [LIVE, "data.augment.swap_words=0"],
        "data.augment",
        "swap_words",
        "it changes nothing",
        "or remove it",
    ),
    "pictures' augmentation of text": (
        REVIEWS,
        [LIVE, "data.augment={drop_words: 0.1, shift: 0.1}"],
        "data.augment.shift",
        "0.1",
        "text-classification does not use it",
        "Remove it, or use drop_words or swap_words",
    ),
    "text's augmentation of pictures": (
        REVIEWS,
        [LIVE, "task={type: image-classification}", "data.augment.swap_words=0.1"],
        "data.augment.swap_words",
        "0.1",
        "image-classification does not use it",
        "Remove it, or use shift or rotate",
    ),
    "augmentation in QA": (
        QUESTIONS,
        [LIVE, "data.augment.drop_words=0.1"],
        "data.augment",
        "{'drop_words': 0.1}",
        "its answers are places in the text",
        "Remove it",
    ),
    "augmentation and stored logits": (
        REVIEWS,
        ["data.augment.drop_words=0.1"],
        "data.augment",
        "{'drop_words': 0.1}",
        "stored logits belong to rows that do not change",
        "Set logits.mode=live, or remove it",
    ),
    "generations and live logits": (
        REVIEWS,
        [LIVE, "method=born_again"],
        "logits.mode",
        "live",
        "method.generations = 3, and the logits of earlier students are stored ones",
        "Use logits.mode=stored",
    ),
    "generations, live logits and augmentation": (
        REVIEWS,
        [LIVE, "method=born_again", "data.augment.drop_words=0.1"],
        "logits.mode",
        "live",
        "method.generations = 3",
        "Use logits.mode=stored and remove data.augment",
    ),
    "override without a value": (REVIEWS, ["method.W"], "override", "method.W", "not key=value", "like method.W=0.5"),
    "override that is not YAML": (REVIEWS, ["data.train=[1"], "data.train", "[1", "not YAML", "Quote it"),
    "override of no teacher": (
        REVIEWS,
        ["teachers.z.folds=2"],
        "teachers.z.folds",
        "2",
        "called z",
        "Name one of a, b",
    ),
    "override inside a value": (REVIEWS, ["name.x=1"], "name.x", "1", "has no keys", "Override it whole"),
    "no such file": ("nowhere.yaml", [], "CONFIG", "nowhere.yaml", "no such file", "jobs/digits.yaml"),
    "syntax error": ("syntax.yaml", [], "CONFIG", "syntax.yaml", "not YAML: line 3", "Mend line 3"),
    "a key twice": ("twice.yaml", [], "CONFIG", "twice.yaml", "line 2: name stands there twice", "Mend line 2"),
    "YAML without keys": ("list.yaml", [], "CONFIG", "list.yaml", "no keys", "jobs/digits.yaml"),
    "a folder as config": ("empty", [], "CONFIG", "empty", "cannot be read", "jobs/digits.yaml"),
    "a file that is no text": ("binary.yaml", [], "CONFIG", "binary.yaml", "cannot be read", "jobs/digits.yaml"),
}

DATA = {
    "missing column": (
        REVIEWS,
        ["data.columns.text=sentence"],
        "data.columns.text",
        "sentence",
        "train has no such column; it has text, label",
        "Set data.columns.text",
    ),
    "second text in some splits only": (
        REVIEWS,
        ["data.train=pairs.parquet"],
        "data.columns.text_pair",
        "text_pair",
        "train has this column, and validation, test has not",
        "Give it to every split",
    ),
    "missing label column": (
        REVIEWS,
        ["data.columns.label=score"],
        "data.columns.label",
        "score",
        "no such column",
        "Set data.columns.label",
    ),
    "column that the task has not": (
        REVIEWS,
        ["data.columns.sentence=text"],
        "data.columns.sentence",
        "text",
        "the task has no such column (text, text_pair, label)",
        "rename",
    ),
    "one column for two": (REVIEWS, ["data.columns.label=text"], "data.columns.label", "text", "text too", "its own"),
    "text that is numbers": (REVIEWS, ["data.test=numbers.parquet"], "data.columns.text", "text", "int64", "of text"),
    "text that is missing": (
        REVIEWS,
        ["data.test=textless.parquet"],
        "data.columns.text",
        "text",
        "in test it is empty in 1 rows, first in row 2",
        "drop",
    ),
    "label outside the model's": (
        REVIEWS,
        ["data.test=seven.parquet"],
        "data.test",
        "7",
        "1 rows (the first is row 3) have a label outside 0..1",
        "task.labels",
    ),
    "gold label that no class allows": (
        REVIEWS,
        ["data.test=hidden.parquet"],
        "data.test",
        "-1",
        "20 rows",
        "a split whose labels are public",
    ),
    "label that has no name": (
        REVIEWS,
        ["data.test=words.parquet"],
        "data.test",
        "awful",
        "not one of bad, good",
        "task.labels",
    ),
    "label that is missing": (REVIEWS, ["data.test=unlabelled.parquet"], "data.test", "None", "row 0", "data.transfer"),
    "label that is a fraction": (
        REVIEWS,
        ["data.test=halves.parquet"],
        "data.columns.label",
        "label",
        "float64",
        "whole",
    ),
    "data that names other classes": (
        REVIEWS,
        ["data.test=nice.parquet"],
        "task.labels",
        "bad, good",
        "the classes of data.test are bad, nice",
        "Use these names",
    ),
    "one class only": (
        REVIEWS,
        ["task.labels=null", "data.train=one_class.parquet"],
        "data.train",
        "0",
        "fewer than two classes",
        "task.labels",
    ),
    "answer that is not in its context": (
        QUESTIONS,
        ["data.train=wrong_answer.parquet"],
        "data.train",
        "q1",
        "is not at character",
        "Mend or drop the row",
    ),
    "answers without their place": (
        QUESTIONS,
        ["data.train=bare_answers.parquet"],
        "data.train",
        "q0",
        "its answers must be",
        "Mend or drop the row",
    ),
    "empty slice": (REVIEWS, ["data.test=train[120:]"], "data.test", "train[120:]", "the split is empty", "Widen"),
    "empty slice of a built-in set": (
        REVIEWS,
        ["data.source=builtin:digits", "data.test=train[1797:]"],
        "data.test",
        "train[1797:]",
        "the split is empty",
        "Widen",
    ),
    "empty file": (REVIEWS, ["data.test=none.csv"], "data.test", "none.csv", "the split is empty", "Widen"),
    "splits of the same rows": (
        REVIEWS,
        ["data.test=train[50:70]"],
        "data.test",
        "train[50:70]",
        "the same rows as data.train (train[:60]): rows 50 to 59",
        "Cut the splits from different rows",
    ),
    "transfer of the same rows": (
        REVIEWS,
        ["data.transfer=train[110:]"],
        "data.test",
        "train[80:]",
        "the same rows as data.transfer",
        "different rows",
    ),
    "splits of the same file": (
        REVIEWS,
        ["data.validation=seven.parquet", "data.test=./seven.parquet"],
        "data.test",
        "./seven.parquet",
        "the same rows as data.validation",
        "different rows",
    ),
    "a file and a slice of it": (
        REVIEWS,
        ["data={source: seven.parquet, train: 'train[:5]', validation: 'train[5:]', test: ./seven.parquet}"],
        "data.test",
        "./seven.parquet",
        "the same rows as data.train (train[:5]): rows 0 to 4",
        "different rows",
    ),
    "unknown split": (REVIEWS, ["data.train=trian[:9]"], "data.train", "trian[:9]", "['train']", "Name a split"),
    "no slice": (REVIEWS, ["data.train=train[:x]"], "data.train", "train[:x]", "Unrecognized", "train[:1000]"),
    "no such folder": (REVIEWS, ["data.source=./nowhere"], "data.source", "./nowhere", "no such file", "a path that"),
    "no such file": (REVIEWS, ["data.test=nowhere.csv"], "data.test", "nowhere.csv", "no such file", "a path that"),
    "folder without data": (
        REVIEWS,
        ["data.source=./empty"],
        "data.source",
        "./empty",
        "any data files",
        "name another",
    ),
    "file of unknown kind": (
        REVIEWS,
        ["data.source=table.xlsx"],
        "data.source",
        "table.xlsx",
        "its kind of file is not known",
        ".parquet, .csv, .json, .jsonl",
    ),
    "broken parquet": (REVIEWS, ["data.test=broken.parquet"], "data.test", "broken.parquet", "arquet", "Mend the file"),
    "broken JSON": (REVIEWS, ["data.test=broken.jsonl"], "data.test", "broken.jsonl", "JSON", "Mend the file"),
    "hub out of reach": (REVIEWS, ["data.source=some/set"], "data.source", "some/set", "Hub", "local folder"),
    "unknown built-in set": (
        REVIEWS,
        ["data.source=builtin:mnist"],
        "data.source",
        "builtin:mnist",
        "",
        "builtin:digits",
    ),
    "configuration that the set has not": (REVIEWS, ["data.name=v9"], "data.name", "v9", "not found", "configurations"),
}

MODELS = {
    "teacher that is neither": (
        REVIEWS,
        [GIVEN, "teachers.a.model=reader"],
        "teachers.a.model",
        "reader",
        "neither a checkpoint fine-tuned for text-classification nor has it a recipe",
        "add `recipe: {}` to train a here",
    ),
    "teacher from scratch without a recipe": (
        REVIEWS,
        [GIVEN],
        "teachers.a.model",
        "electra",
        "nor has it a recipe",
        "add `recipe: {}`",
    ),
    "teacher of other labels": (
        REVIEWS,
        [GIVEN, "teachers.a.model=other"],
        "teachers.a.model",
        "other",
        "other labels (cat, dog) than the task (bad, good)",
        "Set teachers.a.labels",
    ),
    "teacher of numbers in another order": (
        REVIEWS,
        [GIVEN, "teachers.a.model=renumbered_labels"],
        "teachers.a.model",
        "renumbered_labels",
        "numbered in another order (LABEL_1, LABEL_0)",
        "Set teachers.a.labels",
    ),
    "teacher of two labels that differ in case": (
        REVIEWS,
        [GIVEN, "teachers.a.model=twice_bad"],
        "teachers.a.model",
        "twice_bad",
        "other labels (bad, Bad) than the task (bad, good)",
        "Set teachers.a.labels",
    ),
    "teacher without names for numbers in no order": (
        REVIEWS,
        [GIVEN, "task.labels=['1', '0']", "teachers.a.model=unnamed"],
        "teachers.a.model",
        "unnamed",
        "the task's (1, 0) are not in the order of their numbers",
        "Set teachers.a.labels",
    ),
    "labels of a teacher that is trained here": (
        REVIEWS,
        ["teachers.a.labels=[good, bad]"],
        "teachers.0.labels",
        "['good', 'bad']",
        "trained here",
        "remove the recipe",
    ),
    "labels of a teacher in QA": (
        QUESTIONS,
        [GIVEN, "teachers.a.model=reader", "teachers.a.labels=[a, b]"],
        "teachers.a.labels",
        "a, b",
        "no classes",
        "Remove it",
    ),
    "labels of a teacher that the task does not have": (
        REVIEWS,
        [GIVEN, "teachers.a.model=unnamed", "teachers.a.labels=[good, ugly]"],
        "teachers.a.labels",
        "good, ugly",
        "other labels (good, ugly) than the task (bad, good)",
        "the task's names",
    ),
    "teacher of another number of labels": (
        REVIEWS,
        [GIVEN, "teachers.a.model=three"],
        "teachers.a.model",
        "three",
        "3 labels (bad, good, ugly), the task 2 (bad, good)",
        "task.labels",
    ),
    "teachers that disagree on labels": (
        REVIEWS,
        ["task.labels=null", "teachers.*.recipe=null", "teachers.a.model=good", "teachers.b.model=reversed"],
        "teachers.b.model",
        "reversed",
        "another order of labels (good, bad) than teacher a (bad, good)",
        "task.labels",
    ),
    "pickled weights only": (
        REVIEWS,
        ["student.model=pickled"],
        "student.model",
        "pickled",
        "pickled (pytorch_model.bin), which can run code",
        "save_pretrained, which writes safetensors",
    ),
    "no such model": (REVIEWS, ["student.model=./none"], "student.model", "./none", "no such folder", "a hub id"),
    "model out of reach": (REVIEWS, ["student.model=some/model"], "student.model", "some/model", "hub", "local folder"),
    "folder without weights": (REVIEWS, ["student.model=empty"], "student.model", "empty", "no *.safetensors", "Give"),
    "folder without config": (
        REVIEWS,
        ["student.model=configless"],
        "student.model",
        "configless",
        "config.json",
        "Give",
    ),
    "truncated weights": (
        REVIEWS,
        ["student.model=truncated"],
        "student.model",
        "truncated",
        "cannot be read",
        "again",
    ),
    "code of its own": (
        REVIEWS,
        ["student.model=own_code"],
        "student.model.trust_remote_code",
        "False",
        "brings code of its own",
        "Set it to true if you trust its author",
    ),
    "unknown kind of model": (
        REVIEWS,
        ["student.model.config.model_type=elektra"],
        "student.model.config.model_type",
        "elektra",
        "no such kind of model",
        "Did you mean electra?",
    ),
    "unknown value of a model's config": (
        REVIEWS,
        ["student.model.config.hidden_sizes=8"],
        "student.model.config.hidden_sizes",
        "8",
        "electra has no such value",
        "Did you mean hidden_size?",
    ),
    "classes in a model's config": (
        REVIEWS,
        ["student.model.config.num_labels=2"],
        "student.model.config.num_labels",
        "2",
        "the task's",
        "task.labels",
    ),
    "impossible value of a model's config": (
        REVIEWS,
        ["student.model={config: {model_type: electra, hidden_size: wide}, tokenizer: good}"],
        "student.model.config",
        "wide",
        "expected int, got str",
        "Mend the value",
    ),
    "config that the weights do not fit": (
        REVIEWS,
        ["student.model={pretrained: good, config: {intermediate_size: 64}}"],
        "student.model.config",
        "64",
        "is (32,), not (64,)",
        "Remove the values",
    ),
    "head of other classes": (
        REVIEWS,
        ["student.model=three"],
        "student.model",
        "three",
        "is (3,), not (2,)",
        "a model without this head",
    ),
    "model of another task": (
        REVIEWS,
        ["student.model={config: {model_type: vit}, tokenizer: good}"],
        "student.model.config",
        "vit",
        "no model can be made of it",
        "Mend",
    ),
    "row longer than the model": (
        REVIEWS,
        ["task.max_length=65"],
        "task.max_length",
        "65",
        "64 positions",
        "Use at most 64",
    ),
    "no tokenizer": (REVIEWS, ["student.model.tokenizer=null"], "student.model.tokenizer", "None", "needs one", "Give"),
    "folder without tokenizer": (
        REVIEWS,
        ["student.model=tokenless"],
        "student.model.tokenizer",
        "tokenless",
        "no tokenizer can be loaded",
        "Give the folder",
    ),
    "tokenizer without padding": (
        REVIEWS,
        ["student.model.tokenizer=unpadded"],
        "student.model.tokenizer",
        "unpadded",
        "no padding token",
        "pad_token",
    ),
    "token without embedding": (
        REVIEWS,
        ["student.model.config.vocab_size=20"],
        "student.model.tokenizer",
        "tokenizer",
        "has no embedding: the model has 20",
        "vocab_size",
    ),
    "tokenizer that cuts otherwise": (
        QUESTIONS,
        ["teachers.b.model.tokenizer=cutting"],
        "teachers.b.model",
        "cutting",
        "answer positions would not line up",
        "one tokenizer",
    ),
    "stride as long as a window": (
        QUESTIONS,
        ["task.stride=40"],
        "task.max_length",
        "40",
        "not more than the 40 that windows share",
        "lower task.stride",
    ),
}

SETTINGS = {
    "relative sqlite path": (
        REVIEWS,
        ["tracking.uri=sqlite:///mlflow.db"],
        "tracking.uri",
        "sqlite:///mlflow.db",
        "temporary",
        "Use an absolute path",
    ),
    "more CPUs than there are": (REVIEWS, ["student.num_cpus=1000"], "student.num_cpus", "1000", "", "Ask for less"),
    "more CPUs for a teacher": (
        REVIEWS,
        ["teachers.b.num_cpus=1000"],
        "teachers.b.num_cpus",
        "1000",
        "",
        "Ask for less",
    ),
    "more workers than CPUs": (
        REVIEWS,
        ["student.workers=4000"],
        "student.num_cpus",
        "4000 worker(s) of 1 CPU",
        "does not fit",
        "Ask for less",
    ),
    "batch smaller than its parts": (
        REVIEWS,
        ["training.batch_size=3", "student.workers=1", "student.training.accumulation=4"],
        "student.training.batch_size",
        "3",
        "1 workers in 4 accumulations",
        "Use at least 4",
    ),
    "choice by no metric": (
        REVIEWS,
        ["training.select=f1"],
        "training.select",
        "f1",
        "no such metric",
        "accuracy, macro_f1",
    ),
    "choice by another task's metric": (
        QUESTIONS,
        ["teachers.a.recipe.training.select=accuracy"],
        "teachers.a.recipe.training.select",
        "accuracy",
        "no such metric",
        "HasAns_f1",
    ),
    "choice by a metric that no validation row gives": (
        QUESTIONS,
        ["training.select=NoAns_f1", "data.validation=answerable.parquet"],
        "training.select",
        "NoAns_f1",
        "data.validation (answerable.parquet) cannot give it",
        "f1, exact, HasAns_f1, HasAns_exact, nll",
    ),
    "one student's choice by a metric that no validation row gives": (
        QUESTIONS,
        ["student.training.select=HasAns_exact", "data.validation=unanswerable.parquet"],
        "student.training.select",
        "HasAns_exact",
        "data.validation (unanswerable.parquet) cannot give it",
        "NoAns_f1",
    ),
    "a sweep's metric that no validation row gives": (
        QUESTIONS,
        ["search.metric=NoAns_exact", "data.validation=answerable.parquet"],
        "search.metric",
        "NoAns_exact",
        "data.validation (answerable.parquet) cannot give it",
        "HasAns_f1",
    ),
    "a sweep's metric of another task": (
        REVIEWS,
        ["search.metric=f1"],
        "search.metric",
        "f1",
        "no such metric",
        "accuracy, macro_f1",
    ),
    "a searched choice by no metric": (
        REVIEWS,
        ["search.space={training.select: [accuracy, f1]}"],
        "search.space.training.select",
        "f1",
        "no such metric",
        "accuracy, macro_f1",
    ),
    "more folds than rows": (
        REVIEWS,
        ["teachers.a.folds=61"],
        "teachers.a.folds",
        "61",
        "60 groups",
        "fewer folds",
    ),
    "output that is a file": (REVIEWS, ["output=table.xlsx"], "output", "table.xlsx", "no folder", "may write"),
}


def check_line(line: str, key: str, value: str, reason: str, hint: str) -> None:
    """`key = value: reason. mend`, in this order."""
    assert line.startswith(f"{key} = ")
    at = len(key)
    for part in (value, reason, hint):
        assert part in line[at:], line
        at = line.index(part, at) + len(part)


CASES = {**SCHEMA, **{f"data: {k}": v for k, v in DATA.items()}}
CASES |= {f"models: {k}": v for k, v in MODELS.items()} | {f"settings: {k}": v for k, v in SETTINGS.items()}


@pytest.mark.parametrize("command", ["check", "distill"])
@pytest.mark.parametrize("case", CASES)
def test_one_line(refused, command, case):
    job, overrides, key, value, reason, hint = CASES[case]
    check_line(refused(command, job, *overrides), key, value, reason, hint)


@pytest.mark.parametrize(
    ("job", "overrides"),
    [
        (REVIEWS, []),
        (QUESTIONS, []),
        (REVIEWS, [GIVEN, "teachers.a.model=good"]),
        (REVIEWS, [GIVEN, "teachers.a.model=upper"]),  # the case of names does not count
        (REVIEWS, [GIVEN, "teachers.a.model=unnamed"]),  # nothing to compare
        (REVIEWS, [GIVEN, "teachers.a.model=numbered"]),
        (REVIEWS, [GIVEN, "teachers.a.model=reversed"]),  # its classes go by name
        (REVIEWS, [GIVEN, "teachers.a.model=renumbered_labels", "task.labels=null"]),  # LABEL_1 is the data's 1
        (REVIEWS, [GIVEN, "teachers.a.model=other", "teachers.a.labels=[good, bad]"]),
        (REVIEWS, ["task.labels=null", "teachers.*.recipe=null", "teachers.a.model=good", "teachers.b.model=upper"]),
        (REVIEWS, ["teachers.a.model=reversed"]),  # it has a recipe, which gives its head new names
        (QUESTIONS, ["teachers.b.model.tokenizer=renumbered"]),  # other numbers for the same pieces of text
        (REVIEWS, ["task.max_length=64"]),
        (QUESTIONS, ["training.select=HasAns_f1", "search.metric=NoAns_f1"]),
        (REVIEWS, ["data.transfer=hidden.parquet"]),  # transfer rows have no labels anyway
    ],
)
def test_good_input_is_not_refused(jobs, capsys, monkeypatch, job, overrides):
    """The counterparts of cases above: the checks are not too eager."""
    monkeypatch.chdir(jobs)
    assert main(["check", job, *overrides]) == 0
    assert "all is well" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["W above 1", "data: missing column"])
def test_one_line_of_the_program_itself(jobs, case):
    """As a user starts it: nothing of the libraries' own talk is on stderr either."""
    job, overrides, *parts = CASES[case]
    command = [sys.executable, "-m", "raykd", "distill", job, *overrides]
    done = subprocess.run(command, cwd=jobs, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    check_line(done.stderr.removeprefix("raykd: "), *parts)


def test_debug_adds_the_traceback(jobs, capsys, caplog):
    assert main(["check", str(jobs / REVIEWS), "data.train=nothing", "--debug"]) == 2
    assert capsys.readouterr().err.startswith("raykd: data.train = nothing: ")
    assert "Traceback" in caplog.text


def test_gold_label_on_a_class_that_is_not_allowed_stops_the_training(jobs, monkeypatch):
    """Data cannot say so in raykd's own tasks; in a task of one's own the arithmetic refuses it, in one line."""
    collate = TextClassification.collate

    def forbidding(self: TextClassification, rows: dict, processor: object) -> Batch:
        batch = collate(self, rows, processor)
        mask = torch.ones(*batch.labels.shape, 2, dtype=torch.bool)
        mask[..., 1] = False
        return Batch(batch.inputs, batch.labels, mask)

    config = load(jobs / REVIEWS, [f"output={jobs / 'other_runs'}"])
    job = teacher_jobs(config, prepare(config))["a"][0]
    monkeypatch.setattr(TextClassification, "collate", forbidding)
    with pytest.raises(ValueError, match=r"^labels\[\d, 0\] = 1: not a class that this decision allows[^\n]*$"):
        list(train(job))


def test_address_where_no_cluster_is(jobs, capsys, monkeypatch):
    """Ray itself would try for minutes."""
    monkeypatch.chdir(jobs)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:1")  # the YAML's goes before it, and is gone after the test
    assert main(["check", REVIEWS, "ray.address=127.0.0.1:1"]) == 2
    line = capsys.readouterr().err.removeprefix("raykd: ")
    check_line(line, "ray.address", "127.0.0.1:1", "no cluster answers there", "Start it, or remove the address")
