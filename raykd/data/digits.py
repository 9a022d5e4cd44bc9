"""The built-in data set: scikit-learn's digits, which need no download."""

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL.Image import fromarray

DIGITS_ROWS = 1797


def digits(slices: Sequence[tuple[int, int]]) -> Dataset:
    """Rows of UCI's handwritten digits (8x8 pixels), in an order that is shuffled once and for all.

    slices: the first row and the end of each part that is wanted.
    """
    table = _table()
    order = np.random.default_rng(0).permutation(DIGITS_ROWS)
    rows = np.concatenate([order[start:end] for start, end in slices])
    pictures = [fromarray((table[i, :-1].reshape(8, 8) * 15).astype(np.uint8)) for i in rows]  # 0..16 to 0..240
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    return Dataset.from_dict({"image": pictures, "label": table[rows, -1].astype(np.int64)}, features=features)


@cache
def _table() -> np.ndarray:
    """(1797, 65) 64 pixels and the label, from the file that scikit-learn carries: importing it takes seconds."""
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")
