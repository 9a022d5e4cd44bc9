"""Files of rows: which kinds are read, and how. A file's ending says its kind, in either case, with .gz or without."""

import csv
import glob
import gzip
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import datasets
from datasets import Dataset

_READERS = {  # of the library `datasets`
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
KINDS = ", ".join(_READERS)
_DELIMITERS = ",;\t"
log = logging.getLogger(__name__)


class UnreadableFile(Exception):
    """What is wrong with a file, and what to do about it."""

    def __init__(self, path: str | Path, reason: str, hint: str) -> None:
        self.path, self.reason, self.hint = path, reason, hint
        super().__init__(path, reason, hint)


def kind_of(path: str | Path) -> str:
    """The file's ending in small letters, without .gz; "" if files of this kind are not read."""
    ending = Path(Path(path).name.lower().removesuffix(".gz")).suffix
    return ending if ending in _READERS else ""


def read_files(paths: Sequence[str], **options: Any) -> Dataset:
    """All rows of some files, in their order. Raises UnreadableFile, or whatever `datasets` raises.

    options: for `datasets.load_dataset`, which reads all but nested JSON.
    """
    parts: list[Dataset] = []
    alike: list[tuple[str, str, dict[str, Any]]] = []  # files that `datasets` reads next: path, reader, options

    def read_alike() -> None:
        for (reader, more), group in groupby(alike, key=lambda file: file[1:]):
            files = [path for path, *_ in group]
            escaped = [glob.escape(path) for path in files]  # in a path, brackets are no pattern
            if reader == "csv":
                _check_cells(files[0], more)
            parts.append(datasets.load_dataset(reader, data_files=escaped, split="train", **options, **more))
        alike.clear()

    for path in paths:
        check_content(path)
        kind = kind_of(path)
        stat = Path(path).stat()
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if kind == ".json" and (rows := _nested_json(path, state)) is not None:
            read_alike()
            parts.append(rows)
        else:
            alike.append((path, _READERS[kind], _csv_options(path, kind) if kind in (".csv", ".tsv") else {}))
    read_alike()
    return datasets.concatenate_datasets(parts)


def walk(folder: str) -> Iterator[str]:
    """All files in a folder and its subfolders, sorted in each. Links are followed, each folder is visited once."""
    visited = set[str]()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:  # a link to a parent folder
            subfolders.clear()
            continue
        visited.add(real)
        subfolders.sort()
        yield from (path for name in sorted(names) if os.path.exists(path := os.path.join(parent, name)))


def check_content(path: str | Path) -> None:
    """Raise UnreadableFile if this is not the file that its name says."""
    with Path(path).open("rb") as file:
        start = file.read(64)
    if not start:
        raise UnreadableFile(path, "the file is empty, it has 0 bytes", "Write it again, or name another one")
    if start.startswith(b"version https://git-lfs"):
        raise UnreadableFile(path, "it is a git-lfs pointer, not the file itself", "Fetch the file: git lfs pull")


def _open(path: str) -> TextIO:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _csv_options(path: str, kind: str) -> dict[str, Any]:
    """For pandas' reader. A cell is missing if it is empty: None, null and NA are texts like any other."""
    with _open(path) as file:
        header = re.sub(r'"[^"]*"', "", file.readline())
        delimiter = "\t" if kind == ".tsv" else max(_DELIMITERS, key=header.count)
        options: dict[str, Any] = {"sep": delimiter, "keep_default_na": False, "na_values": [""]}
        if delimiter == "\t" and _is_unquoted(file, header.count("\t")):
            options["quoting"] = csv.QUOTE_NONE
    return options


def _check_cells(path: str, options: Mapping[str, Any]) -> None:
    """Raise UnreadableFile if the first row has more cells than the header: pandas takes the first ones for row names.

    Whole numbers can be row numbers, which R writes without a name: then it warns.

    path: of the first of some files, which are all alike.
    options: for the reader of CSV files.
    """
    with _open(path) as file:
        quoting = options.get("quoting", csv.QUOTE_MINIMAL)
        lines = csv.reader(file, delimiter=options.get("sep", ","), quoting=quoting)
        try:
            header, row = next(lines, []), next(lines, [])
        except csv.Error:  # such as a cell of more than 131,072 characters, which pandas reads
            return
    if len(row) <= len(header):
        return
    reason, hint = "its rows have more cells than its header has names", "Quote texts that hold the separator"
    if not row[0].strip().isdigit():
        raise UnreadableFile(path, reason, f"{hint}, and name every column")
    log.warning("%s: %s. The first ones are taken as row numbers; if they are not: %s", path, reason, hint)


def _is_unquoted(lines: Iterable[str], tabs: int) -> bool:
    """Whether quotation marks are text, as in GLUE's files: some cell opens one and does not close it, and yet every
    line has all of its cells. There, one that opens would swallow the lines up to the next one.

    tabs: in the header.
    """
    unclosed = False
    for line in lines:
        if line.strip() and line.count("\t") != tabs:
            return False  # a quoted cell holds a line break or a tab
        unclosed = unclosed or _opens_without_closing(line)
    return unclosed


def _opens_without_closing(line: str) -> bool:
    cells = line.rstrip("\r\n").split("\t")
    return any(cell.startswith('"') and not re.fullmatch(r'"([^"]|"")*"', cell) for cell in cells)


@lru_cache(maxsize=4)  # each split asks for the whole file, for its slice and for its length
def _nested_json(path: str, state: tuple[int, ...]) -> Dataset | None:
    """The rows of a file that is one JSON object; None if it is a list, or an object a line.

    state: of the file, changes with its content.

    Read are a list of rows under "data", SQuAD as it is published (https://rajpurkar.github.io/SQuAD-explorer),
    and an object of columns, each a list of values or, as pandas writes it, an object of values by index.
    """
    with _open(path) as file:
        first, one_line = file.readline(), False
        if not first.lstrip().startswith("{"):
            return None
        try:
            json.loads(first)
            if any(line.strip() for line in file):
                return None  # an object a line
            one_line = True
        except json.JSONDecodeError:
            pass  # the first line is the beginning of one object
        file.seek(0)
        try:
            whole = json.load(file)
        except json.JSONDecodeError:
            return None  # the reader of one object a line reports what is wrong
    data = whole.get("data")
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        return _table(_squad(data) if "paragraphs" in data[0] else data)
    indices = [list(c) for c in whole.values() if isinstance(c, dict)]
    columns = [list(c.values()) if isinstance(c, dict) else c for c in whole.values()]
    if (
        all(index == indices[0] for index in indices)
        and columns
        and all(isinstance(c, list) for c in columns)
        and len({len(c) for c in columns}) == 1
    ):
        return Dataset.from_dict(dict(zip(whole, columns, strict=True)))
    if one_line and whole and not all(isinstance(value, (list, dict)) for value in whole.values()):
        return None  # an object a line, and one row
    keys = ", ".join(list(whole)[:5])
    raise UnreadableFile(
        path,
        f"it is one JSON object, with the keys {keys}, and not a row a line, a list of rows or columns of equal length",
        'Write one object a line, or the rows as a list under "data"',
    )


def _table(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _squad(articles: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """A row a question, as `datasets` has them."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                row = {
                    "id": None if question.get("id") is None else str(question["id"]),
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                }
                if (answers := question.get("answers")) is not None:
                    row["answers"] = {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
                yield row
