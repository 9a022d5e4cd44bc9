"""Rows: loaded, checked, identified by content, and tokenized once for everyone who needs them."""

import logging
import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Image, ReadInstruction

from raykd.common.errors import ConfigError, HubError
from raykd.common.hashing import DIGEST_BYTES, digest, fingerprint
from raykd.config.schema import Config, DataConfig
from raykd.data.digits import DIGITS_ROWS, digits
from raykd.data.labels import LISTS, number_labels, one_label_per_row
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
SPLITS = ("train", "transfer", "validation", "test")
_AT_ONCE = 1000  # rows that are identified at a time
_READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class Split:
    """One set of raw rows, under the task's own column names.

    ids: (rows, 16) uint8, each row's content hash without its label.
    digest: hex; everything in the split, labels too, in order.
    """

    name: str
    rows: Dataset
    ids: np.ndarray
    digest: str

    @property
    def labelled(self) -> bool:
        return self.name != "transfer"


def load_splits(config: Config, task: Task) -> dict[str, Split]:
    """Load, rename and check every split. Sets the task's label names if the data knows them.

    Raises ConfigError for what cannot work; equal rows in two splits are counted in a warning.
    """
    with quiet_datasets():
        raw = {name: _load(config.data, name) for name in SPLITS if getattr(config.data, name)}
        _refuse_overlap(config.data)
        warn_of_shared_articles(raw, config.data, task)
        raw = {name: _rename(rows, config.data, task, name) for name, rows in raw.items()}
        _check_same_columns(raw, config.data, task)
        for name, rows in raw.items():
            _check_inputs(rows, config.data, task, name)
        if task.named_classes:
            raw = number_labels(raw, task, config.data)
        splits = {}
        for name, rows in raw.items():
            task.check_rows(rows, name, name != "transfer")
            ids = row_ids(rows, task)
            labels = [] if name == "transfer" else rows[task.label_column][:]
            beside = [rows[role][:] for role in task.columns if role not in _content(rows, task)]
            identity = fingerprint([digest(ids.tobytes()).hex(), labels, *beside])
            splits[name] = Split(name, rows, ids, identity)
    warn_of_equal_rows(splits)
    warn_of_single_classes(splits, task)
    return splits


def warn_of_single_classes(splits: dict[str, Split], task: Task) -> None:
    """A slice of data that are sorted by label: it teaches a constant, or scores one as perfect."""
    if not task.named_classes:
        return
    for name, split in splits.items():
        if split.labelled and len(found := one_label_per_row(split.rows, task).unique(task.label_column)) == 1:
            label = task.label_names[found[0]]
            log.warning(
                "data.%s: all of its %d rows have one class, %s; shuffle the data", name, len(split.rows), label
            )


def warn_of_shared_articles(raw: dict[str, Dataset], data: DataConfig, task: Task) -> None:
    """In QA two splits should share no article: a context that was trained on is half an answer."""
    if task.group_column is None:
        return
    titled = all("title" in rows.column_names for rows in raw.values())
    column = "title" if titled else data.columns.get(task.group_column, task.group_column)
    found = {name: set(rows.unique(column)) for name, rows in raw.items() if column in rows.column_names}
    for (a, first), (b, second) in combinations(found.items(), 2):
        if common := len(first & second):
            log.warning("data: %d %ss stand in both %s and %s: cut the splits by article", common, column, a, b)


def warn_of_equal_rows(splits: dict[str, Split]) -> dict[tuple[str, str], int]:
    """Count rows whose content stands in two splits, as in many public sets; returns and logs the counts."""
    found = {}
    for a, b in combinations(splits.values(), 2):
        common = len(np.intersect1d(_as_keys(a.ids), _as_keys(b.ids)))
        if common:
            found[a.name, b.name] = common
            log.warning("data: %d different rows of %s stand in %s too (equal content)", common, b.name, a.name)
    return found


def _as_keys(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view(f"S{DIGEST_BYTES}").ravel()


def row_ids(rows: Dataset, task: Task) -> np.ndarray:
    """(N, 16) uint8: the hash of each raw row's inputs; its label and its place do not count."""
    roles = _content(rows, task)
    content = rows.select_columns([*roles])
    for role in roles:
        if isinstance(rows.features[role], Image):
            content = content.cast_column(role, Image(decode=False))
    joined = bytearray()
    # Some at a time: as Python's objects they take several times their room.
    for batch in content.iter(_AT_ONCE):
        columns = [[_as_bytes(value) for value in batch[role]] for role in roles]
        joined += b"".join(digest(*parts) for parts in zip(*columns, strict=True))
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)


def _as_bytes(value: Any) -> bytes:
    """Of a text, or of a picture that is not decoded."""
    if isinstance(value, dict):
        return value["bytes"] or Path(value["path"]).read_bytes()
    return str(value).encode()


def _load(data: DataConfig, name: str) -> Dataset:
    spec = getattr(data, name)
    key, source = f"data.{name}", data.source
    if Path(spec).suffix in _READERS:  # a split in a file of its own
        source, spec = spec, "train"
    if source.startswith("builtin:"):
        if source != "builtin:digits":
            raise ConfigError(
                "data.source", source, "there is no such built-in set", "The one there is: builtin:digits"
            )
        chosen = _instruction(spec, key, {"train": DIGITS_ROWS})
        if not any(start < end for _, start, end in chosen):
            raise _empty(key, spec)
        return digits([(start, end) for _, start, end in chosen])
    if Path(source).is_file():
        reader = _READERS.get(Path(source).suffix)
        if reader is None:
            raise ConfigError(
                "data.source", source, "its kind of file is not known", f"Use one of {', '.join(_READERS)}"
            )
        arguments: dict[str, Any] = {"path": reader, "data_files": source}
    else:
        if not Path(source).is_dir() and (source.startswith((".", "/")) or Path(source).suffix in _READERS):
            raise ConfigError(
                "data.source" if source == data.source else key,
                source,
                "there is no such file or folder",
                "Give a path that exists, or a hub id",
            )
        arguments = {"path": source, "name": data.name, "revision": data.revision}
    given = getattr(data, name)
    try:
        if os.path.exists(source):
            arguments["cache_dir"] = _cache_of(source)
        rows = datasets.load_dataset(**arguments, split=spec)
    except Exception as error:  # datasets raises whatever it meets
        raise _not_loaded(error, data, key, given, source) from None
    if not len(rows):
        raise _empty(key, given)
    return rows


def _cache_of(source: str) -> str:
    """A folder in datasets' cache for the local files as they are now.

    datasets itself compares only their modification times. rsync and git can keep those where the content is another;
    the time of a file's last change of any kind (ctime) no program can set.
    """
    files, walked = [source], set[str]()
    for folder, below, names in os.walk(source, followlinks=True):
        if (real := os.path.realpath(folder)) in walked:  # a link to a folder above it
            below.clear()
            continue
        walked.add(real)
        files += [os.path.join(folder, name) for name in names if os.path.exists(os.path.join(folder, name))]
    stamps = [
        (path, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in sorted(files) for s in [os.stat(path)]
    ]
    return os.path.join(datasets.config.HF_DATASETS_CACHE, "raykd", fingerprint([os.path.realpath(source), stamps]))


def _not_loaded(error: Exception, data: DataConfig, key: str, given: str, source: str) -> ConfigError:
    lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(".!")
    if "corresponds to no data" in reason or isinstance(error, StopIteration):  # the latter: JSON without a line
        return _empty(key, given)
    if reason.startswith("BuilderConfig"):
        return ConfigError("data.name", data.name, reason, "Name one of the set's configurations")
    if reason.startswith(("Unknown split", "Unrecognized instruction")):
        return ConfigError(key, given, reason, "Name a split of the data, with a slice such as train[:1000]")
    where = "data.source" if source == data.source else key
    if os.path.exists(source):
        return ConfigError(where, source, f"it cannot be loaded ({reason})", "Mend the file, or name another")
    kind = HubError if isinstance(error, ConnectionError) else ConfigError
    hint = "Give a local folder, or run where the hub can be reached"
    return kind(where, source, f"it cannot be loaded ({reason})", hint)


def _empty(key: str, spec: str) -> ConfigError:
    return ConfigError(key, spec, "the split is empty", "Widen its slice, or name other rows")


def _instruction(spec: str, key: str, lengths: dict[str, int]) -> list[tuple[str, int, int]]:
    """`train[10:20]` to [("train", 10, 20)]; `a+b` gives two."""
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, KeyError, AssertionError) as error:
        raise ConfigError(
            key,
            spec,
            f"it is no slice of {', '.join(lengths)} ({str(error).splitlines()[0]})",
            "Write it like train[:300]",
        ) from None
    return [(p.splitname, p.from_ or 0, lengths[p.splitname] if p.to is None else p.to) for p in parts]


def _refuse_overlap(data: DataConfig) -> None:
    """Two splits cut from the same rows of the same source are a mistake that no table would show."""
    used: dict[str, list[tuple[str, int, int]]] = {}
    specs = {n: s for n in SPLITS if (s := getattr(data, n))}
    file = os.path.realpath(data.source) if Path(data.source).is_file() else ""  # its one split is called train
    for name, spec in specs.items():
        if Path(spec).suffix in _READERS:
            used[name] = [(os.path.realpath(spec), 0, len(_load(data, name)))]
        else:
            bases = {part.partition("[")[0].strip() for part in spec.split("+")}
            parts = _instruction(spec, f"data.{name}", {base: _length(data, base) for base in bases})
            used[name] = [(file or base, start, end) for base, start, end in parts]
    for (a, first), (b, second) in combinations(used.items(), 2):
        for (sa, from_a, to_a), (sb, from_b, to_b) in ((x, y) for x in first for y in second):
            if sa == sb and max(from_a, from_b) < min(to_a, to_b):
                raise ConfigError(
                    f"data.{b}",
                    specs[b],
                    f"it is cut from the same rows as data.{a} ({specs[a]}): "
                    f"rows {max(from_a, from_b)} to {min(to_a, to_b) - 1}",
                    "Cut the splits from different rows",
                )


def _length(data: DataConfig, base: str) -> int:
    """Rows of a whole split; loaded already, so this reads the cache."""
    if data.source == "builtin:digits":
        return DIGITS_ROWS
    return len(_load(data.model_copy(update={"train": base}), "train"))


def _rename(rows: Dataset, data: DataConfig, task: Task, name: str) -> Dataset:
    """Keep the task's columns, under the task's names; the labels of transfer rows are dropped here."""
    labelled = name != "transfer"
    wanted = [*task.columns, *task.optional_columns, *([task.label_column] if labelled else [])]
    for role in set(data.columns) - {*wanted, task.label_column}:
        raise ConfigError(
            f"data.columns.{role}",
            data.columns[role],
            f"the task has no such column ({', '.join(wanted)})",
            "Remove or rename it",
        )
    kept: dict[str, str] = {}
    for role in wanted:
        column = data.columns.get(role, role)
        if column in kept:
            reason = f"it is the column of {kept[column]} too"
            raise ConfigError(f"data.columns.{role}", column, reason, "Give each its own")
        if column in rows.column_names:
            kept[column] = role
        elif role not in task.optional_columns or role in data.columns:
            raise ConfigError(
                f"data.columns.{role}",
                column,
                f"{name} has no such column; it has {', '.join(rows.column_names)}",
                f"Set data.columns.{role} to one of them",
            )
    rows = rows.select_columns(list(kept))
    return rows.rename_columns({c: r for c, r in kept.items() if c != r})


def _content(rows: Dataset, task: Task) -> tuple[str, ...]:
    """The columns that identify a row, and that models are fed."""
    return task.identity_columns or (*task.columns, *(r for r in task.optional_columns if r in rows.column_names))


def _check_same_columns(raw: dict[str, Dataset], data: DataConfig, task: Task) -> None:
    """An optional column is in every split or in none: else some rows would be fed to the models without it."""
    for role in task.optional_columns:
        having = [name for name, rows in raw.items() if role in rows.column_names]
        if having and (lacking := [name for name in raw if name not in having]):
            key, column = f"data.columns.{role}", data.columns.get(role, role)
            reason = f"{', '.join(having)} has this column, and {', '.join(lacking)} has not"
            raise ConfigError(key, column, reason, "Give it to every split, or to none")


def _check_inputs(rows: Dataset, data: DataConfig, task: Task, name: str) -> None:
    """Text is text and pictures are pictures, in every row."""
    pictures = task.processor == "image_processor"
    for role in _content(rows, task):
        feature = rows.features[role]
        words = role in task.word_columns
        value = feature.feature if words and isinstance(feature, LISTS) else feature
        fits = isinstance(feature, Image) if pictures else getattr(value, "dtype", "") in ("string", "large_string")
        fits = fits and words == isinstance(feature, LISTS)
        key, column = f"data.columns.{role}", data.columns.get(role, role)
        if not fits:
            kind = getattr(feature, "dtype", None) or type(feature).__name__
            wanted = "pictures (datasets' Image)" if pictures else "lists of words" if words else "text"
            raise ConfigError(key, column, f"in {name} it holds {kind}, not {wanted}", f"Name a column of {wanted}")
        missing = rows.select_columns(role).with_format("arrow")[:][role].is_null().to_numpy()
        if missing.any():
            reason = f"in {name} it is empty in {missing.sum()} rows, first in row {missing.argmax()}"
            raise ConfigError(key, column, reason, "Mend or drop these rows")


class quiet_datasets:
    """datasets' own progress bars would be drawn over raykd's, and its errors told twice."""

    def __enter__(self) -> None:
        self.shown, self.level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is told in raykd's own words

    def __exit__(self, *_: object) -> None:
        datasets.logging.set_verbosity(self.level)
        if self.shown:
            datasets.enable_progress_bars()
