"""Rows whose logits are a function of the row and the teacher, so that a wrong row would be seen."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from raykd.common.hashing import digest
from raykd.logits import TeacherKey, TeacherLogits


def key(teacher: str = "a", **parts: str) -> TeacherKey:
    whole = {"weights": teacher, "processor": "p", "preprocessing": "s", "dtype": "float32"} | parts
    return TeacherKey(**whole, metadata={"name": f"Teacher {teacher}"})


def ids(rows: Iterable[int]) -> np.ndarray:
    return np.array([list(digest(b"row", b"%d" % r)) for r in rows], np.uint8).reshape(-1, 16)


def inputs(rows: Iterable[int], tokenizer: bytes = b"t") -> np.ndarray:
    return np.array([list(digest(tokenizer, b"%d" % r)) for r in rows], np.uint8).reshape(-1, 16)


def logits(row: int, teacher: str = "a", h: int = 2, c: int | None = None) -> np.ndarray:
    """(h, c) float16; without c the row decides it, from 3 to 7."""
    seed = int.from_bytes(digest(teacher.encode(), b"%d" % row)[:8], "little")
    shape = (h, 3 + row % 5 if c is None else c)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def write_blocks(teacher: TeacherLogits, rows: Sequence[int], block: int = 4, **shape: int) -> list[Path]:
    """What a pool does: add what is missing, in blocks. Returns the blocks written."""
    missing = [rows[i] for i in teacher.missing(ids(rows), inputs(rows))]
    paths = []
    for start in range(0, len(missing), block):
        part = missing[start : start + block]
        values = [logits(r, teacher.key.weights, **shape) for r in part]
        paths.append(teacher.add(ids(part), inputs(part), values))
    return paths


def expected(rows, teachers="abc", **shape) -> np.ndarray:
    """(M, B, H, C), padded, the slow and plain way."""
    values = {(t, r): logits(r, t, **shape) for t in teachers for r in rows}
    h, c = (max(v.shape[axis] for v in values.values()) for axis in (0, 1))
    out = np.zeros((len(teachers), len(rows), h, c), np.float16)
    for m, t in enumerate(teachers):
        for b, r in enumerate(rows):
            value = values[t, r]
            out[m, b, : value.shape[0], : value.shape[1]] = value
    return out


def flip(path: Path, at: int) -> None:
    """Another file under the same name, as a copy from a bad disk would be."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.unlink()
    path.write_bytes(data)
