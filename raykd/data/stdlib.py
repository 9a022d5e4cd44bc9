"""The built-in data set of texts: the source files of Python's standard library, which need no download."""

import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from datasets import Dataset, Features, Value

from raykd.common.hashing import digest

# Folders of tests, tables and other people's packages.
_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "encodings", "pydoc_data"}
_LEFT_OUT |= {"ensurepip", "turtledemo", "__pycache__"}


def stdlib(slices: Sequence[tuple[int, int]]) -> Dataset:
    """Rows of `text`, a whole file, and `file`, its name, in an order that is shuffled once and for all.

    So a slice is of whole files, and no file is in two splits. The files are those of the running Python's version.

    slices: the first row and the end of each part that is wanted.
    """
    files = [file for start, end in slices for file in _files()[start:end]]
    folder = Path(sysconfig.get_paths()["stdlib"])
    rows = {"text": [(folder / name).read_text("utf-8") for name in files], "file": list(files)}
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), "file": Value("string")}))


def stdlib_rows() -> int:
    return len(_files())


@cache
def _files() -> tuple[str, ...]:
    """Names relative to the library's folder, in the order of their hashes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in folder.rglob("*.py"):
        name = path.relative_to(folder)
        if not _LEFT_OUT & set(name.parts) and path.stat().st_size:
            found.append(name.as_posix())
    return tuple(sorted(found, key=lambda name: digest(name.encode())))
