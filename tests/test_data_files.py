"""Files of every kind that `datasets`, pandas, Excel or a task's community writes: read, or named as what they are."""

import errno
import gzip
import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from raykd.common.errors import ConfigError, DiskFullError
from raykd.config.schema import DataConfig
from raykd.data.source import load_rows

ROWS = {"text": ["fine, really", "NA", 'so "so"', "null"], "label": [1, 0, 1, 0]}
TABLE = pd.DataFrame(ROWS)
RECORDS = TABLE.to_dict("records")
WRITERS = {
    "rows.csv": lambda path: TABLE.to_csv(path, index=False),
    "ROWS.CSV": lambda path: TABLE.to_csv(path, index=False),
    "rows.csv.gz": lambda path: TABLE.to_csv(path, index=False),
    "excel.csv": lambda path: TABLE.to_csv(path, index=False, sep=";", encoding="utf-8-sig"),
    "tabs.csv": lambda path: TABLE.to_csv(path, index=False, sep="\t"),
    "rows.tsv": lambda path: TABLE.to_csv(path, index=False, sep="\t"),
    "glue.tsv": lambda path: path.write_text(
        "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in zip(*ROWS.values(), strict=True))
    ),
    "rows.jsonl": lambda path: TABLE.to_json(path, orient="records", lines=True),
    "rows.ndjson": lambda path: TABLE.to_json(path, orient="records", lines=True),
    "lines.json": lambda path: TABLE.to_json(path, orient="records", lines=True),
    "records.json": lambda path: TABLE.to_json(path, orient="records"),
    "records.json.gz": lambda path: TABLE.to_json(path, orient="records"),
    "pandas.json": lambda path: TABLE.to_json(path),
    "columns.json": lambda path: path.write_text(json.dumps(ROWS)),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": RECORDS}, indent=1)),
    "data.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps({"data": RECORDS}).encode())),
    "rows.parquet": lambda path: TABLE.to_parquet(path),
    "saved": lambda path: datasets.Dataset.from_dict(ROWS).save_to_disk(path),
}


def rows_of(source: Path, train: str = "train", validation: str = "train", split: str = "train") -> dict[str, list]:
    return load_rows(DataConfig(source=str(source), train=train, validation=validation, test="train"), split)[:]


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_kind_gives_the_same_rows(tmp_path, name):
    folder = tmp_path / "a [b] é"  # brackets are no pattern
    folder.mkdir()
    WRITERS[name](folder / name)
    assert rows_of(folder / name) == ROWS
    assert rows_of(folder / name, "train[1:3]+train[3:]") == {key: values[1:] for key, values in ROWS.items()}
    if (folder / name).is_file():  # a split can be a file of its own
        assert rows_of(tmp_path, validation=str(folder / name), split="validation") == ROWS


def test_an_arrow_file(tmp_path):
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.rename(tmp_path / "rows.arrow")
    assert rows_of(tmp_path / "rows.arrow") == ROWS


def test_saved_splits(tmp_path):
    parts = {"train": datasets.Dataset.from_dict(ROWS), "dev": datasets.Dataset.from_dict(ROWS).select([2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert rows_of(tmp_path / "saved") == ROWS
    assert rows_of(tmp_path / "saved", validation="dev", split="validation") == {"text": ['so "so"'], "label": [1]}
    with pytest.raises(ConfigError, match=r"data.validation = test.*dev"):
        rows_of(tmp_path / "saved", validation="test", split="validation")


def test_text_is_a_row_a_line(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo, or more\n")
    assert rows_of(tmp_path / "lines.txt") == {"text": ["one", "two, or more"]}


def test_an_empty_cell_is_missing(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n,1\nNone,0\n")
    assert rows_of(tmp_path / "rows.csv") == {"text": [None, "None"], "label": [1, 0]}


def test_one_line_of_json_is_one_row(tmp_path):
    (tmp_path / "rows.json").write_text('{"text": "a", "labels": ["x", "y"]}\n')
    assert rows_of(tmp_path / "rows.json") == {"text": ["a"], "labels": [["x", "y"]]}


def test_row_numbers_without_a_name_are_read(tmp_path, caplog):
    """As R writes them. They could also be what stands before an unquoted comma, so there is a warning."""
    (tmp_path / "rows.csv").write_text('"text","label"\n"1","Great, really",1\n"2","Bad",0\n')
    rows = rows_of(tmp_path / "rows.csv")
    assert (rows["text"], rows["label"]) == (["Great, really", "Bad"], [1, 0])
    assert "rows.csv" in caplog.text
    (tmp_path / "named.csv").write_text("__index_level_0__,text,label\na,Great,1\nb,Bad,0\n")
    assert rows_of(tmp_path / "named.csv")["__index_level_0__"] == ["a", "b"]


def test_a_quoted_cell_may_hold_a_line_break(tmp_path):
    table = pd.DataFrame({"text": ["one\ntwo", 'a "b"', "tab\there"], "label": [1, 0, 1]})
    table.to_csv(tmp_path / "rows.tsv", index=False, sep="\t")
    assert rows_of(tmp_path / "rows.tsv") == table.to_dict("list")


def test_a_file_that_changes_is_read_again(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "rows.json").write_text(json.dumps({"data": [{"text": text, "label": 1}]}))
        assert rows_of(tmp_path / "rows.json")["text"] == [text]


def test_squad_as_it_is_published(tmp_path):
    """A row a question, with the columns that `datasets` gives it."""
    answer = {"text": "Paris", "answer_start": 0}
    asked = [
        {"id": "q1", "question": "Where?", "answers": [answer], "is_impossible": False},
        {"id": "q2", "question": "When?", "answers": [], "is_impossible": True},
    ]
    article = {"title": "France", "paragraphs": [{"context": "Paris it is.", "qas": asked}]}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [article, article]}))
    rows = rows_of(tmp_path / "dev-v2.0.json")
    assert rows["question"] == ["Where?", "When?"] * 2
    assert rows["context"] == ["Paris it is."] * 4
    assert rows["answers"][:2] == [{"text": ["Paris"], "answer_start": [0]}, {"text": [], "answer_start": []}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "", "0 bytes"),
        ("rows.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git-lfs"),
        ("rows.json", '{"a": {"b": 1}, "c": [1, 2]}', "a, c"),
        ("record.json", '{"a": {"x": 1}, "c": {"y": 2}}', "a, c"),
        ("rows.xlsx", "PK", ".csv"),
        ("commas.csv", "text,label\nGreat, really,1\nBad, too,0\n", "more cells"),
        ("some.csv", "text,label\nGreat, really,1\nBad,0\n", "more cells"),
        ("tabs.tsv", "text\tlabel\nGreat\treally\t1\nBad\ttoo\t0\n", "more cells"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        rows_of(tmp_path / name)
    assert "data.source" in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "saved"])
def test_every_kind_in_a_folder_gives_the_same_rows(tmp_path, name):
    """Splits go by the words in names, as on the hub, in any case of letters."""
    folder = tmp_path / "a [b] é"
    folder.mkdir()
    for split in ("train", "Dev"):
        path = folder / f"{split}-{name}"
        WRITERS[name](path)
        path.rename(folder / (path.name.upper() if name.isupper() else path.name))
    (folder / "README.md").write_text("# Films\n")
    (folder / "LICENSE.txt").write_text("none\n")
    assert rows_of(folder) == ROWS
    assert rows_of(folder, validation="validation[1:]", split="validation")["label"] == ROWS["label"][1:]
    with pytest.raises(ConfigError, match=r"data.validation = test.*train, validation|data.validation = test.*'train'"):
        rows_of(folder, validation="test", split="validation")


def test_files_of_a_split_are_joined_in_their_order(tmp_path):
    for number, (delimiter, kind) in enumerate(((",", "csv"), (";", "csv"), ("\t", "tsv"), ("\t", "CSV"))):
        table = pd.DataFrame({"text": [f"film {number}"], "label": [number]})
        table.to_csv(tmp_path / f"train_{number}.{kind}", index=False, sep=delimiter)
    assert rows_of(tmp_path) == {"text": [f"film {number}" for number in range(4)], "label": [0, 1, 2, 3]}


def test_a_pointer_in_a_folder_of_tables_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(ConfigError, match="train.csv.*git-lfs"):
        rows_of(tmp_path)


def test_a_pointer_in_a_folder_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(ConfigError, match="train.parquet.*git-lfs"):
        rows_of(tmp_path)


def test_a_data_set_of_several_configurations_needs_one(tmp_path):
    """As most benchmarks on the hub have them."""
    for name in ("cola", "sst2"):
        (tmp_path / name).mkdir()
        WRITERS["rows.csv"](tmp_path / name / "rows.csv")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/rows.csv\n" for name in ("cola", "sst2"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in (None, "glue"):
        with pytest.raises(ConfigError) as error:
            load_rows(DataConfig(source=str(tmp_path), name=name), "train")
        assert (error.value.key, error.value.value) == ("data.name", name)
        assert all(config in str(error.value) for config in ("cola", "sst2"))
    assert load_rows(DataConfig(source=str(tmp_path), name="sst2"), "train")["label"][:] == ROWS["label"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """The cache is to blame, and not the data file."""
    WRITERS["rows.csv"](tmp_path / "rows.csv")
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "datasets")  # also for root
    with pytest.raises(ConfigError, match=r"^HF_HOME = .*/file/datasets: .*/file.*HF_HOME"):
        rows_of(tmp_path / "rows.csv")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    WRITERS["rows.csv"](tmp_path / "rows.csv")

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("cannot write") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(DiskFullError):
        rows_of(tmp_path / "rows.csv")
