"""The source of the data: loads a split's rows from a hub id, a folder, a file or the built-in set."""

import os
import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, ReadInstruction

from raykd.common.dotted import is_dotted
from raykd.common.entry_points import installed, own_path
from raykd.common.errors import ConfigError, DiskFullError, HubError, UserError, disk_is_full
from raykd.common.hashing import fingerprint
from raykd.config.schema import DataConfig
from raykd.data.class_names import listed
from raykd.data.digits import DIGITS_ROWS, digits
from raykd.data.files import KINDS, UnreadableFile, check_content, kind_of, read_files, walk
from raykd.data.folders import read_folder
from raykd.data.own_code import own_data
from raykd.data.stdlib import stdlib, stdlib_rows

# The rows of slices, and how many rows there are.
BUILTIN = {"builtin:digits": (digits, lambda: DIGITS_ROWS), "builtin:stdlib": (stdlib, stdlib_rows)}
SPLITS = ("train", "transfer", "validation", "test")
UNLABELLED = "transfer"  # the one whose labels, if there are any, are not used


def load_rows(data: DataConfig, name: str) -> Dataset:
    """The raw rows of one split. Raises ConfigError, or HubError if the hub is unreachable."""
    spec = getattr(data, name)
    key, source = f"data.{name}", data.source
    if kind_of(spec):  # the split is a file of its own
        source, spec = spec, "train"
    if source.startswith("builtin:"):
        if source not in BUILTIN:
            hint = f"Use {' or '.join(BUILTIN)}"
            raise ConfigError("data.source", source, "there is no such built-in data set", hint)
        read, count = BUILTIN[source]
        slices = _slices(spec, key, {"train": count()})
        if not any(start < end for _, start, end in slices):
            raise _empty(key, spec)
        return read([(start, end) for _, start, end in slices])
    if (own := _own_function(source)) is not None:
        rows = _select(own_data(own), spec, key)
        if not len(rows):
            raise _empty(key, spec)
        return rows
    where = "data.source" if source == data.source else key
    path = Path(source)
    if path.is_file() and not kind_of(source):
        raise ConfigError(
            where, source, "this file type is not supported", f"Use one of {KINDS}, or one of them with .gz"
        )
    if not path.exists() and (source.startswith((".", "/")) or kind_of(source)):
        raise ConfigError(where, source, "there is no such file or folder", "Give a path that exists, or a hub id")
    given = getattr(data, name)
    whole: dict[str, Dataset] | None = None
    try:
        if path.is_file():
            whole = {"train": read_files([source], cache_dir=_cache_folder(source))}
        elif path.is_dir() and (path / "dataset_dict.json").exists():
            whole = dict(datasets.load_from_disk(source))
        elif path.is_dir() and (path / "state.json").exists():
            whole = {"train": datasets.load_from_disk(source)}
        elif path.is_dir() and data.name is None:
            whole = read_folder(source, _cache_folder(source))
        if whole is None:
            options: dict[str, Any] = {"name": data.name, "revision": data.revision}
            if path.exists():
                options["cache_dir"] = _cache_folder(source)
            rows = datasets.load_dataset(source, split=spec, **options)
        else:
            rows = _select(whole, spec, key)
    except UnreadableFile as error:
        raise ConfigError(where, error.path, error.reason, error.hint) from None
    except ConfigError:
        raise
    except Exception as error:  # datasets raises exceptions of any type
        raise _load_error(error, data, key, given, source) from None
    if not len(rows):
        raise _empty(key, given)
    return rows


def _own_function(source: str) -> str | None:
    """`module:function` of the user's own code that a source names; None if it names something else. ConfigError."""
    exists = Path(source).exists()
    if not is_dotted(path := own_path("data.source", source)):
        return None
    if exists and path != source:
        package = installed("data.source")[source]
        reason = f"it is a file or folder here, and also an entry point of the installed package {package}"
        raise ConfigError("data.source", source, reason, f"Write ./{source} for the first, {path} for the second")
    return None if exists else path


def _select(splits: Mapping[str, Dataset], spec: str, key: str) -> Dataset:
    """The rows that a split's specification names, such as `train[10:20]+test`.

    Their values are Python's, also if the data set was saved or returned with a format such as torch's. A transform of
    the user's own stays, because it changes what the rows are.
    """
    slices = _slices(spec, key, {name: len(rows) for name, rows in splits.items()})
    # An empty range behind the last row is an IndexError of datasets.
    chosen = [splits[name].select(range(start, end) if start < end else []) for name, start, end in slices]
    rows = datasets.concatenate_datasets(chosen)
    return rows if rows.format["type"] == "custom" else rows.with_format(None)


def _cache_folder(source: str) -> str:
    """A folder in datasets' cache for the current state of local files.

    datasets itself compares only modification times, which rsync and git can keep when they change the content. No
    program can set the ctime, the time of a file's last change of any kind.
    """
    files = [source, *walk(source)]
    stamps = [
        (path, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in sorted(files) for s in [os.stat(path)]
    ]
    return os.path.join(datasets.config.HF_DATASETS_CACHE, "raykd", fingerprint([os.path.realpath(source), stamps]))


def _cache_error(error: BaseException | None) -> UserError | None:
    """The error if datasets' cache cannot be written, for which the data is not to blame; otherwise None."""
    cache = str(datasets.config.HF_DATASETS_CACHE)
    if disk_is_full(error):
        return DiskFullError(getattr(error, "filename", None) or cache)
    while error is not None:
        path = str(getattr(error, "filename", None) or "")
        if isinstance(error, OSError) and path and (path.startswith(cache) or Path(path) in Path(cache).parents):
            name = "HF_DATASETS_CACHE" if "HF_DATASETS_CACHE" in os.environ else "HF_HOME"
            reason = f"the cache of data sets cannot be written ({error.strerror}: {path})"
            return ConfigError(name, cache, reason, f"Set {name} to a folder that can be written")
        error = error.__cause__ or error.__context__
    return None


def _load_error(error: Exception, data: DataConfig, key: str, given: str, source: str) -> UserError:
    if cause := _cache_error(error):
        return cause
    lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(".!")
    if "corresponds to no data" in reason or isinstance(
        error, StopIteration
    ):  # StopIteration: a JSON file without lines
        return _empty(key, given)
    if reason.startswith("Config name is missing"):
        names = listed(re.findall(r"'([^']+)'", lines[1] if len(lines) > 1 else ""))
        hint = f"Name one of {names}" if names else "Name one of its configurations"
        return ConfigError("data.name", data.name, f"{source} has several configurations", hint)
    if reason.startswith(("BuilderConfig", "There are multiple")):  # the second one of its cache, without the hub
        return ConfigError("data.name", data.name, reason, "Name one of the data set's configurations")
    if reason.startswith(("Unknown split", "Unrecognized instruction")):
        return ConfigError(key, given, reason, "Name a split of the data, with a slice such as train[:1000]")
    where = "data.source" if source == data.source else key
    for file in sorted(Path(source).rglob("*")) if Path(source).is_dir() else ():
        try:
            if kind_of(file):
                check_content(file)
        except UnreadableFile as unreadable:
            return ConfigError(where, unreadable.path, unreadable.reason, unreadable.hint)
    if os.path.exists(source):
        return ConfigError(where, source, f"it cannot be loaded ({reason})", "Repair the file, or name another one")
    kind = HubError if isinstance(error, ConnectionError) else ConfigError
    hint = "Give a local folder, or run where the hub is reachable"
    if packages := installed("data.source"):
        hint += f"; installed packages have {', '.join(f'{n} ({p})' for n, p in sorted(packages.items()))}"
    return kind(where, source, f"it cannot be loaded ({reason})", hint)


def _empty(key: str, spec: str) -> ConfigError:
    return ConfigError(key, spec, "the split is empty", "Use a larger slice, or other rows")


def _slices(spec: str, key: str, lengths: dict[str, int]) -> list[tuple[str, int, int]]:
    """The parts of a split's specification: `train[10:20]` is [("train", 10, 20)]; `a+b` has two parts.

    lengths: rows of each whole split.
    """
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, KeyError, AssertionError) as error:
        raise ConfigError(
            key,
            spec,
            f"it is not a slice of {', '.join(lengths)} ({str(error).splitlines()[0]})",
            "Write it like train[:300]",
        ) from None
    return [(p.splitname, p.from_ or 0, lengths[p.splitname] if p.to is None else p.to) for p in parts]


def check_disjoint(data: DataConfig) -> None:
    """Raise ConfigError if two splits contain the same rows of the same source."""
    parts_of: dict[str, list[tuple[str, int, int]]] = {}
    specs = {n: s for n in SPLITS if (s := getattr(data, n))}
    file = os.path.realpath(data.source) if Path(data.source).is_file() else ""  # its only split is called train
    for name, spec in specs.items():
        if kind_of(spec):
            parts_of[name] = [(os.path.realpath(spec), 0, len(load_rows(data, name)))]
        else:
            bases = {part.partition("[")[0].strip() for part in spec.split("+")}
            parts = _slices(spec, f"data.{name}", {base: _split_length(data, base) for base in bases})
            parts_of[name] = [(file or base, start, end) for base, start, end in parts]
    for (a, first), (b, second) in combinations(parts_of.items(), 2):
        for (sa, from_a, to_a), (sb, from_b, to_b) in ((x, y) for x in first for y in second):
            if sa == sb and max(from_a, from_b) < min(to_a, to_b):
                raise ConfigError(
                    f"data.{b}",
                    specs[b],
                    f"it is cut from the same rows as data.{a} ({specs[a]}): "
                    f"rows {max(from_a, from_b)} to {min(to_a, to_b) - 1}",
                    "Cut the splits from different rows",
                )


def _split_length(data: DataConfig, base: str) -> int:
    """The number of rows of a whole split. It is loaded already, so this reads the cache."""
    if data.source in BUILTIN:
        return BUILTIN[data.source][1]()
    return len(load_rows(data.model_copy(update={"train": base}), "train"))


class quiet_datasets:
    """Turns off the progress bars and logs of `datasets`, which would disturb raykd's own."""

    def __enter__(self) -> None:
        self.shown, self.level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # raykd reports errors itself

    def __exit__(self, *_: object) -> None:
        datasets.logging.set_verbosity(self.level)
        if self.shown:
            datasets.enable_progress_bars()
