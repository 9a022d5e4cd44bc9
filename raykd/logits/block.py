"""One block of the logit store: an immutable file that can be verified on its own.

    magic 8 | version u32 | header length u32 | header JSON, padded to 64     {checksum, key, n, values}
    row ids (n, 16) u8 | input hashes (n, 16) u8 | shapes (n, 2) i32 | zeros to 64 | values fp16

Little-endian. `values` are the rows' (H, C) logits one after another, so rows can be ragged. The checksum is the
SHA-256 of the rest of the header and of everything after it, and the header has only one valid spelling. So truncation,
extra bytes, flipped bits, an incomplete copy or another teacher's file are detected from the file alone, even on
storage without atomic renames. The same rows give the same bytes, and nothing is ever unpickled.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raykd.common.errors import StoreError
from raykd.logits.rows import ID_BYTES, id_array
from raykd.logits.verified import VerifiedFiles

MAGIC, VERSION, ALIGN, MAX_HEADER = b"RAYKDLOG", 1, 64, 4096
HEAD_BYTES = 16 + MAX_HEADER
NOT_ITS_BYTES = "its bytes do not match its checksum"

_verified = VerifiedFiles()


class DamagedBlock(StoreError):
    """A file, or an object of an object store (then `path` is text), that is not the block its name claims."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(path, reason)  # both, so that it survives pickling by Ray

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Block:
    """Read-only views of a mapped file. They stay valid when the file is renamed or deleted."""

    path: Path
    row_ids: np.ndarray  # (n, 16) uint8
    input_hashes: np.ndarray  # (n, 16) uint8
    shapes: np.ndarray  # (n, 2) int32, each row's H and C
    values: np.ndarray  # (sum of H * C,) float16

    def starts(self) -> np.ndarray:
        """(n,) int64: where each row begins in `values`. Computed, so that it always matches `shapes`."""
        sizes = self.shapes.astype(np.int64).prod(axis=1)
        return np.cumsum(sizes) - sizes


def block_parts(
    key: str, row_ids: np.ndarray, input_hashes: np.ndarray, logits: Sequence[np.ndarray] | np.ndarray
) -> tuple[bytes, bytes, memoryview]:
    """The parts of a block of n rows, to be written one after another.

    key: the teacher's fingerprint.
    row_ids: (n, 16) uint8.
    input_hashes: (n, 16) uint8.
    logits: n arrays (H, C) float16, or one (n, H, C), all finite.

    Raises ValueError for anything else.
    """
    row_ids, input_hashes = id_array(row_ids, "row ids"), id_array(input_hashes, "input hashes")
    if not 0 < len(row_ids) == len(input_hashes) == len(logits):
        raise ValueError(f"{len(row_ids)} row ids, {len(input_hashes)} input hashes, {len(logits)} logits")
    checked = logits[:1] if isinstance(logits, np.ndarray) else logits  # all rows of one array are like its first
    for i, row in enumerate(checked):
        if row.dtype != np.float16 or row.ndim != 2 or row.size == 0:
            raise ValueError(f"logits of row {i} must be (H, C) float16, not {row.shape} {row.dtype}")
    values = np.concatenate([row.ravel() for row in logits]) if checked is logits else np.ravel(logits)
    values = values.astype("<f2", copy=False)
    if not np.isfinite(values).all():
        bad = next(i for i, row in enumerate(logits) if not np.isfinite(row).all())
        raise ValueError(f"logits of row {bad} are not finite")
    shapes = np.array([row.shape for row in checked], "<i4").repeat(len(logits) // len(checked), axis=0)
    body = row_ids.tobytes() + input_hashes.tobytes() + shapes.tobytes()
    body += bytes(-len(body) % ALIGN)
    fields = {"key": key, "n": len(row_ids), "values": values.size}
    state = _checksum(fields)
    state.update(body)
    state.update(values.data)
    return _header(fields, state.hexdigest()), body, values.data.cast("B")


def open_block(path: Path, key: str, verify: bool = True) -> Block:
    """Memory-map a block.

    path: of the file.
    key: the teacher's fingerprint.
    verify: compare the checksum, once for each file, node and day (`raykd.logits.verified`).

    Raises DamagedBlock if the file is not a complete block of this key, StoreError if the process has too many maps.
    """
    stat = path.stat()
    # Arrow's map, because numpy's keeps a file descriptor open for each block, and 10 million rows are thousands of
    # blocks.
    try:
        with pa.memory_map(str(path)) as file:
            data = memoryview(file.read_buffer())
    except OSError as error:
        if os.strerror(errno.ENOMEM) in str(error):  # out of maps, not of memory
            raise StoreError(_no_more_maps(path)) from None
        raise
    fields, checksum, begin, values_at = _read_header(path, data, key)
    if verify and stat not in _verified:
        state = _checksum(fields)
        with path.open("rb") as raw:  # read, not mapped, so that the pages do not count as this process's memory
            raw.seek(begin)
            hashlib.file_digest(raw, lambda: state)
        if state.hexdigest() != checksum:
            raise DamagedBlock(path, NOT_ITS_BYTES)
        _verified.add(stat)

    n, shapes_at = fields["n"], begin + 2 * ID_BYTES * fields["n"]
    ids = np.frombuffer(data[begin:shapes_at], np.uint8).reshape(2, n, ID_BYTES)
    shapes = np.frombuffer(data, "<i4", 2 * n, shapes_at).reshape(n, 2)
    return Block(path, ids[0], ids[1], shapes, np.frombuffer(data, "<f2", fields["values"], values_at))


def _no_more_maps(path: Path) -> str:
    limit = Path("/proc/sys/vm/max_map_count")
    most = limit.read_text().strip() if limit.exists() else "?"
    return (
        f"{path}: it cannot be mapped, because this process has reached the system's limit of memory maps. Every block "
        f"is one map, and vm.max_map_count is {most} on this node. Raise it on every node (sysctl -w "
        f"vm.max_map_count=1000000), or compute a new store with larger blocks (logits.block_rows)"
    )


def check_block(data: bytes, where: Path | str, key: str) -> int:
    """The number of rows of a block. Raises DamagedBlock if the bytes are not a complete block of this key.

    data: the block.
    where: its path or address, for the error.
    key: the teacher's fingerprint.
    """
    fields, checksum, begin, _ = _read_header(where, memoryview(data), key)
    state = _checksum(fields)
    state.update(memoryview(data)[begin:])
    if state.hexdigest() != checksum:
        raise DamagedBlock(where, NOT_ITS_BYTES)
    return fields["n"]


def block_bytes(rows: int, values: int) -> int:
    """The size in bytes of a block.

    rows: how many.
    values: how many fp16 values in all rows.
    """
    header = len(_header({"key": "0" * 32, "n": rows, "values": values}, "0" * 64))
    body = (2 * ID_BYTES + 8) * rows
    return header + body + -body % ALIGN + 2 * values


def _checksum(fields: dict) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode())


def _header(fields: dict, checksum: str) -> bytes:
    text = json.dumps({**fields, "checksum": checksum}, sort_keys=True).encode()
    text += b" " * (-(16 + len(text)) % ALIGN)
    return MAGIC + VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little") + text


def rows_claimed(start: bytes, where: Path | str) -> int:
    """The number of rows according to the header, which is not verified.

    start: the first HEAD_BYTES bytes of a block.
    where: its path or address, for the error.
    """
    return _read_fields(where, memoryview(start))[0]["n"]


def _read_header(where: Path | str, data: memoryview, key: str) -> tuple[dict, str, int, int]:
    """The header's fields, the checksum, and the offsets of the rest and of the values. Checks key and length."""
    fields, checksum, begin = _read_fields(where, data)
    if fields["key"] != key:
        raise DamagedBlock(where, f"holds the logits of {fields['key']}, not of {key}")
    values_at = begin + (2 * ID_BYTES + 8) * fields["n"]
    values_at += -values_at % ALIGN
    expected = values_at + 2 * fields["values"]
    if len(data) != expected:
        raise DamagedBlock(where, f"is {len(data)} bytes long instead of {expected}")
    return fields, checksum, begin, values_at


def _read_fields(where: Path | str, data: memoryview) -> tuple[dict, str, int]:
    """The header's fields, the checksum, and the offset of the rest."""
    if bytes(data[:8]) != MAGIC:
        raise DamagedBlock(where, "is not a block of logits")
    if (version := int.from_bytes(data[8:12], "little")) != VERSION:
        raise DamagedBlock(where, f"has format version {version} instead of {VERSION}")
    length = min(int.from_bytes(data[12:16], "little"), MAX_HEADER)
    try:
        fields = json.loads(bytes(data[16 : 16 + length]))
        checksum = fields.pop("checksum")
        whole = fields.keys() == {"key", "n", "values"} and type(fields["n"]) is type(fields["values"]) is int
        whole = whole and min(fields["n"], fields["values"]) > 0
        whole = whole and _header(fields, checksum) == bytes(data[: 16 + length])
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, or not these fields
        whole = False
    if not whole:
        raise DamagedBlock(where, "its header is damaged")
    return fields, checksum, 16 + length
