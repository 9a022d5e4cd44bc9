"""`data.source: my_module:load`, as the documentation shows it."""

import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from tiny import electra, save_tokenizer

from raykd import api
from raykd.common.dotted import is_dotted
from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.data.loading import load_splits
from raykd.data.own_code import own_data
from raykd.tasks import make_task

PAGE = (Path(__file__).parents[1] / ".docs" / "pages" / "data.md").read_text()


def block(language: str, after: str = "## A data set from your own code") -> str:
    return PAGE.split(after)[1].split(f"```{language}\n")[1].split("```")[0]


def job(folder: Path, source: str = "") -> dict:
    """The page's job, at toy size."""
    model = {"config": electra(), "tokenizer": str(save_tokenizer(folder / "tokenizer"))}
    return {
        "name": "reviews", "output": str(folder / "runs"), "task": {"type": "text-classification"},
        "data": yaml.safe_load(block("yaml"))["data"] | ({"source": source} if source else {}),
        "teachers": [{"name": "a", "model": model, "recipe": {}}], "student": {"model": model},
    }  # fmt: skip


def splits(tree: dict):
    config = build(tree)
    return load_splits(config, make_task(config.task))


def test_the_documented_function_is_data_by_its_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "calls = []\n" + block("python").replace("def load():\n", "def load():\n    calls.append(0)\n")
    (tmp_path / "my_reviews.py").write_text(code)
    found = splits(job(tmp_path))
    assert {name: len(split.rows) for name, split in found.items()} == {"train": 120, "validation": 30, "test": 50}
    assert found["test"].rows[1]["text"] == "review 151: good"
    import my_reviews

    assert my_reviews.calls == [0], "once for all splits"
    folder = tmp_path / "files"
    folder.mkdir()
    for name, rows in my_reviews.load().items():
        rows.to_json(folder / f"{name}.jsonl")
    same = splits(job(tmp_path, str(folder)))
    assert {name: split.digest for name, split in same.items()} == {name: s.digest for name, s in found.items()}


ROWS = [{"text": f"film {i}", "label": i % 2} for i in range(12)]
FORMATTED = """
from datasets import Dataset

ROWS = {rows}


def plain():
    return Dataset.from_list(ROWS)


def formatted():
    return plain().with_format("{kind}")


def transformed():
    return plain().with_transform(lambda rows: rows | {{"text": [text.upper() for text in rows["text"]]}})
"""


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_format_does_not_change_the_rows_but_a_transform_does(tmp_path, here, kind):
    """Neither the format of a function's data set nor that of a saved one."""
    module = f"rows_for_{kind}"
    (here / f"{module}.py").write_text(FORMATTED.format(rows=ROWS, kind=kind))
    Dataset.from_list(ROWS).with_format(kind, columns=["label"]).save_to_disk(tmp_path / "saved")
    cut = {"train": "train[:6]", "validation": "train[6:9]", "test": "train[9:]"}
    plain, formatted, saved, transformed = (
        splits(job(tmp_path) | {"data": {"source": source, **cut}})["train"]
        for source in (f"{module}:plain", f"{module}:formatted", str(tmp_path / "saved"), f"{module}:transformed")
    )
    assert plain.rows[:] == formatted.rows[:] == saved.rows[:]
    assert plain.digest == formatted.digest == saved.digest != transformed.digest
    assert transformed.rows[0] == {"text": "FILM 0", "label": 0}


def test_a_later_command_of_a_process_sees_what_has_changed(tmp_path, monkeypatch):
    """In a notebook: the function's code, or what it reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # compiled files know their source by its second and size
    code = """\
from datasets import Dataset


def load():
    rows = [{"review": f"review {line}", "stars": i % 2} for i, line in enumerate(open("lines.txt"))]
    return {"train": Dataset.from_list(rows[:-2]), "test": Dataset.from_list(rows[-2:])}
"""
    (tmp_path / "my_changing.py").write_text(code)
    (tmp_path / "lines.txt").write_text("".join(f"{i}\n" for i in range(132)))
    tree = job(tmp_path, "my_changing:load")
    assert len(splits(tree)["validation"].rows) == 10
    (tmp_path / "lines.txt").write_text("nothing")
    assert len(splits(tree)["validation"].rows) == 10, "a command calls the function once, whatever it prepares"
    (tmp_path / "lines.txt").write_text("".join(f"{i}\n" for i in range(132)))
    api._forget_data()
    (tmp_path / "my_changing.py").write_text(code.replace("review {line}", "report {line}"))
    assert splits(tree)["train"].rows["text"][0].startswith("report 0")
    api._forget_data()
    (tmp_path / "my_changing.py").write_text("an edit that is no Python")
    with pytest.raises(ConfigError, match="cannot be imported"):
        splits(tree)
    (tmp_path / "my_changing.py").write_text(code.replace("review {line}", "reader {line}"))
    assert splits(tree)["train"].rows["text"][0].startswith("reader 0"), "also after an edit that failed"
    (tmp_path / "lines.txt").write_text("".join(f"{i}\n" for i in range(100)))
    api._forget_data()
    with pytest.raises(ConfigError) as error:
        splits(tree)
    assert error.value.key == "data.validation"  # train[120:]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def load():\n    raise ValueError('no key')", "ValueError: no key"),
        ("def load():\n    return [1, 2]", "returned a list"),
        ("def other(): ...", "has no load"),
        ("import nothing_like_this", "nothing_like_this"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(tmp_path, monkeypatch, code, reason):
    monkeypatch.chdir(tmp_path)
    name = f"bad_data_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    with pytest.raises(ConfigError) as error:
        splits(override(job(tmp_path), {"data.source": f"{name}:load"}))
    assert error.value.key == "data.source"
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_that_has_not_changed_stays_as_it_is(tmp_path, monkeypatch):
    """With what a notebook has set in it, and with the files of its package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "rows.txt").write_text("a b")
    (tmp_path / "my_package" / "__init__.py").write_text("""\
from importlib.resources import files

from datasets import Dataset

MORE = []


def load():
    texts = (files(__name__) / "rows.txt").read_text().split() + MORE
    return {name: Dataset.from_dict({"text": [f"{name} {t}" for t in texts]}) for name in ("train", "test")}
""")
    assert len(own_data("my_package:load")["train"]) == 2
    sys.modules["my_package"].MORE.append("c")
    own_data.cache_clear()
    assert own_data("my_package:load")["train"]["text"][:] == ["train a", "train b", "train c"]


def test_other_sources_are_not_taken_for_it():
    assert is_dotted("my.module:load")
    assert not any(map(is_dotted, ("s3://bucket/a", "C:\\data", "reviews.csv", "org/name", "a:b:c", "./a.csv")))


def test_a_package_whose_parts_change_is_imported_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_library").mkdir()
    (tmp_path / "my_library" / "words.py").write_text('WORD = "review"\n')
    (tmp_path / "my_library" / "starts.py").write_text("START = 0\n")
    code = """\
import my_library.starts
import my_library.words
from datasets import Dataset


def load():
    rows = [{"review": f"{my_library.words.WORD} {i + my_library.starts.START}", "stars": i % 2} for i in range(200)]
    return {"train": Dataset.from_list(rows[:150]), "test": Dataset.from_list(rows[150:])}
"""
    (tmp_path / "my_library" / "__init__.py").write_text(code)
    tree = job(tmp_path, "my_library:load")
    assert splits(tree)["train"].rows["text"][0] == "review 0"
    (tmp_path / "my_library" / "words.py").write_text('WORD = "report"\n')
    api._forget_data()
    assert splits(tree)["train"].rows["text"][0] == "report 0"
    (tmp_path / "my_library" / "words.py").write_text("WORD =")
    api._forget_data()
    with pytest.raises(ConfigError, match="cannot be imported"):
        splits(tree)
    (tmp_path / "my_library" / "words.py").write_text('WORD = "reader"\n')
    (tmp_path / "my_library" / "starts.py").write_text("START = 5\n")
    assert splits(tree)["train"].rows["text"][0] == "reader 5", "also the parts whose import has not failed"
