"""Files of predictions, written chunk by chunk: parquet, CSV or JSON lines."""

import csv
import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from raykd.common.atomic import new_file
from raykd.common.errors import ConfigError

KINDS = (".parquet", ".csv", ".jsonl")


class Output(Protocol):
    def write(self, rows: Sequence[dict[str, Any]], own: Collection[str]) -> None:
        """own: the names of the columns that are not predictions."""


class _Json:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, rows: Sequence[dict[str, Any]], own: Collection[str]) -> None:
        self._file.writelines(_as_json(row) + "\n" for row in rows)


class _Csv:
    """Lists and mappings are cells of JSON, as a table has no other place for them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._writer: csv.DictWriter | None = None

    def write(self, rows: Sequence[dict[str, Any]], own: Collection[str]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(rows[0]))
            self._writer.writeheader()
        self._writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


class _Parquet:
    """The rows' own columns keep their types. The first chunk decides those of the predictions."""

    def __init__(self, path: Path, draft: Path, columns: pa.Schema) -> None:
        self._path, self._draft, self._columns = path, draft, columns
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: Sequence[dict[str, Any]], own: Collection[str]) -> None:
        if self._writer is None:
            fields = [(name, self._type([row[name] for row in rows], name, own)) for name in rows[0]]
            self._writer = pq.ParquetWriter(self._draft, pa.schema(fields))
        try:
            table = pa.Table.from_pylist([*rows], schema=self._writer.schema)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            reason = f"a column's later values are of another type than its first ones ({error})"
            raise ConfigError("--output", self._path, reason, "Write .jsonl, which has no types") from None
        self._writer.write_table(table)

    def _type(self, values: list[Any], name: str, own: Collection[str]) -> pa.DataType:
        known = name in own and name in self._columns.names
        return self._columns.field(name).type if known else _text_for_null(pa.array(values).type)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def open_output(path: Path | None, stdout: TextIO, columns: pa.Schema) -> Iterator[Output]:
    """Yield where rows are written to. The file exists only once all of them are.

    path: None for JSON lines on `stdout`.
    columns: of the rows before they are predicted, with their types.

    Raises ConfigError if the file's kind is none of KINDS, its folder does not exist or cannot be written to, or a
    column's values are of several types.
    """
    if path is None:
        yield _Json(stdout)
        return
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ConfigError("--output", path, "this file type is not written", f"Use one of {', '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError("--output", path, "its folder does not exist", "Make the folder, or name another one")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError("--output", path, "its folder cannot be written to", "Name another folder")
    with new_file(path, durable=False) as draft:
        if kind == ".parquet":
            parquet = _Parquet(path, draft, columns)
            yield parquet
            parquet.close()
        else:
            with draft.open("w", encoding="utf-8", newline="") as file:
                yield _Json(file) if kind == ".jsonl" else _Csv(file)


def _text_for_null(found: pa.DataType) -> pa.DataType:
    """The type with text in place of null, which is all that values show if none of them has, say, a label."""
    if pa.types.is_null(found):
        return pa.string()
    if pa.types.is_list(found):
        return pa.list_(_text_for_null(found.value_type))
    return found


def _cell(value: Any) -> Any:
    return _as_json(value) if isinstance(value, (list, dict)) else value


def _as_json(value: Any) -> str:
    """With null for NaN and infinity, which JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
