"""Folders of files: which split each file belongs to, and the rows of each split.

`datasets` takes the same folders, but takes every name with a word such as train or test for a split's, and leaves out
files whose ending is in capitals.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import datasets
from datasets import Dataset

from raykd.common.hashing import digest
from raykd.data.files import kind_of, read_files, walk

_SPLIT_WORDS = {  # as `datasets` has them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_CARDS = ("README.md", ".huggingface.yaml")  # can say which files are which split
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # describe the pictures in their folder
_NO_ROWS = (*_CARDS, "config.json", "dataset_info.json", "dataset_infos.json", "state.json")
_COLUMNAR = (".parquet", ".arrow")


@lru_cache(maxsize=2)  # each split asks for the folder, for its slice and for its length
def read_folder(folder: str, cache: str) -> dict[str, Dataset] | None:
    """The rows of each split; None if it is a folder of other files, or as the hub has them, for `datasets` to load.

    cache: a folder for `datasets`' cache, another one if a file has changed.

    Raises what `read_files` raises.
    """
    root = Path(folder)
    if any(_is_card(root / name) for name in _CARDS):
        return None
    paths = [Path(path).relative_to(root) for path in walk(folder)]
    paths = [p for p in paths if p.name not in _NO_ROWS and not any(part.startswith((".", "__")) for part in p.parts)]
    pictures = [path for path in paths if path.suffix.lower() in _picture_endings()]
    tables = [path for path in paths if kind_of(path) and path.name not in _METADATA]
    if len(pictures) > len(tables):
        return _read_pictures(root, pictures, [path for path in paths if path.name in _METADATA], cache)
    if all(path.suffix in _COLUMNAR for path in tables):
        return None
    return {
        split: read_files([str(root / path) for path in parts], cache_dir=cache)
        for split, parts in splits_of_tables(tables).items()
    }


def splits_of_tables(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split, by the words in the names of folders or else of files, as on the hub.

    If no name has such a word, all files of the most frequent kind are train. Files without one are left out otherwise.
    """
    if len(rows := [path for path in paths if kind_of(path) != ".txt"]):
        paths = rows  # texts beside them are licences and notes
    for name_of in (_shard_split, _folder_split, lambda path: _split_in(path.name)):
        named: dict[str, list[Path]] = {}
        for path in paths:
            if split := name_of(path):
                named.setdefault(split, []).append(path)
        if named:
            return named
    [(kind, _)] = Counter(map(kind_of, paths)).most_common(1)
    return {"train": [path for path in paths if kind_of(path) == kind]}


def splits_of_pictures(pictures: Sequence[Path]) -> dict[str, list[Path]]:
    """The folders of each split; train is the whole folder if its subfolders are classes.

    Subfolders are splits if one of them is called like a split and itself has subfolders, or if all are called like
    splits. Only then: a class can be called train, and a picture test_001.png. No picture is left out: a subfolder
    beside splits is one under its own name.
    """
    base = Path()
    while len(tops := {path.relative_to(base).parts[0] for path in pictures}) == 1:
        top = base / next(iter(tops))
        if top in pictures or _split_in(top.name):
            break
        base = top
    depths = {path.relative_to(base).parts[0]: len(path.relative_to(base).parts) for path in pictures}
    called = {top for top in tops if _split_in(top)}
    if min(depths.values()) == 1 or not (called == tops or any(depths[top] > 2 for top in called)):
        return {"train": [Path()]}
    folders: dict[str, list[Path]] = {}
    for name in sorted(tops):
        folders.setdefault(_split_in(name) or name, []).append(base / name)
    return folders


def _shard_split(path: Path) -> str | None:
    found = _SHARD.match(path.name)
    return found[1] if found and path.parent.name == "data" else None


def _folder_split(path: Path) -> str | None:
    return next((split for part in path.parts[:-1] if (split := _split_in(part))), None)


def _split_in(name: str) -> str | None:
    """The split whose word is in a name, between the characters that separate words."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((split for word in words for split, known in _SPLIT_WORDS.items() if word in known), None)


def _is_card(path: Path) -> bool:
    """Whether this is a data set's card with settings in YAML, and not only text."""
    return path.exists() and (path.suffix != ".md" or path.read_text(errors="replace").startswith("---"))


def _picture_endings() -> Sequence[str]:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder  # imports pandas

    endings: Sequence[str] = ImageFolder.EXTENSIONS
    return endings


def _read_pictures(root: Path, pictures: Sequence[Path], metadata: Sequence[Path], cache: str) -> dict[str, Dataset]:
    folders = splits_of_pictures(pictures)
    if any(path.parent in folder.parents for path in metadata for parts in folders.values() for folder in parts):
        folders = {"train": [Path()]}  # the metadata describe the pictures of all splits

    def load(splits: Sequence[str], **options: bool) -> dict[str, Dataset]:
        patterns = {split: [f"{glob.escape(str(root / folder))}/**" for folder in folders[split]] for split in splits}
        return dict(datasets.load_dataset("imagefolder", data_files=patterns, cache_dir=cache, **options))

    deep = [split for split, parts in folders.items() if any(_has_classes(folder, pictures) for folder in parts)]
    rows = load(deep) if deep else {}  # at once, so that they have the same classes
    for split in folders.keys() - {*deep}:
        rows |= load([split], drop_labels=True)  # of a folder's own name
    if deep and folders.keys() == {"train"}:  # it will be cut into splits, and pictures come class by class
        rows["train"] = _mixed(rows["train"], root)
    return rows


def _mixed(rows: Dataset, root: Path) -> Dataset:
    """The rows in the order of hashes of their paths in the folder, so that each part has all classes.

    The order is the same wherever the folder is, and pictures that are added change no other two's.
    """
    paths = [picture["path"] for picture in rows.cast_column("image", datasets.Image(decode=False))["image"][:]]
    keys = [digest(os.path.relpath(path, root).encode()) for path in paths]
    return rows.select(sorted(range(len(keys)), key=keys.__getitem__))


def _has_classes(folder: Path, pictures: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) and len(path.relative_to(folder).parts) > 1 for path in pictures)
