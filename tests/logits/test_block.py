import hashlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_logits import ids, inputs, logits

from raykd.common.atomic import write_atomically
from raykd.common.errors import DiskFullError
from raykd.logits import block as block_module
from raykd.logits.block import HEAD_BYTES, DamagedBlock, block_parts, check_block, open_block, rows_claimed


def write_block(path: Path, *block) -> None:
    write_atomically(path, *block_parts(*block))


def written(path: Path, rows=range(5), key="k", **shape) -> list[np.ndarray]:
    values = [logits(r, **shape) for r in rows]
    write_block(path, key, ids(rows), inputs(rows), values)
    return values


@pytest.mark.parametrize("shape", [{}, {"c": 4}, {"h": 1, "c": 2}, {"h": 7}])
def test_a_block_returns_what_was_written(tmp_path, shape):
    values = written(tmp_path / "b", **shape)
    block = open_block(tmp_path / "b", "k")
    np.testing.assert_array_equal(block.row_ids, ids(range(5)))
    np.testing.assert_array_equal(block.input_hashes, inputs(range(5)))
    for value, start, (h, c) in zip(values, block.starts(), block.shapes, strict=True):
        np.testing.assert_array_equal(block.values[start : start + h * c].reshape(h, c), value)
    assert block.values.dtype == np.float16


def test_rows_can_differ_in_decisions(tmp_path):
    values = [logits(0, h=3), logits(1, h=1), logits(2, h=5)]
    write_block(tmp_path / "b", "k", ids(range(3)), inputs(range(3)), values)
    block = open_block(tmp_path / "b", "k")
    assert block.shapes.tolist() == [[3, 3], [1, 4], [5, 5]]
    np.testing.assert_array_equal(block.values[block.starts()[2] :].reshape(5, 5), values[2])


def test_the_same_rows_give_the_same_bytes(tmp_path):
    written(tmp_path / "one")
    written(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_one_array_of_all_rows_is_the_same_block(tmp_path):
    values = written(tmp_path / "one", h=3, c=4)
    write_block(tmp_path / "two", "k", ids(range(5)), inputs(range(5)), np.stack(values))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_values_are_mapped_aligned_and_read_only(tmp_path):
    written(tmp_path / "b", rows=range(7))
    open_files = len(os.listdir("/proc/self/fd"))
    blocks = [open_block(tmp_path / "b", "k") for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == open_files  # thousands of blocks fit under ulimit -n
    assert blocks[0].values.ctypes.data % 64 == 0
    assert str(tmp_path / "b") in Path("/proc/self/maps").read_text()
    with pytest.raises(ValueError, match="read-only"):
        blocks[0].values[0] = 1


def test_a_flip_of_any_byte_is_found(tmp_path):
    written(tmp_path / "b", rows=range(3))
    good = (tmp_path / "b").read_bytes()
    assert check_block(good, "b", "k") == 3
    for at in range(len(good)):
        path = tmp_path / f"flipped{at}"
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DamagedBlock) as caught:
            open_block(path, "k")
        assert caught.value.path == path
        with pytest.raises(DamagedBlock, match=re.escape(caught.value.reason)):  # the same of bytes in memory
            check_block(path.read_bytes(), "s3://b", "k")


def test_any_other_length_is_found(tmp_path):
    written(tmp_path / "b", rows=range(3))
    good = (tmp_path / "b").read_bytes()
    for cut in [*range(len(good)), len(good) + 1, len(good) + 64]:
        path = tmp_path / f"cut{cut}"
        path.write_bytes((good + bytes(64))[:cut])
        with pytest.raises(DamagedBlock):
            open_block(path, "k")
        with pytest.raises(DamagedBlock):  # the length alone says so
            open_block(path, "k", verify=False)
        with pytest.raises(DamagedBlock):
            check_block(path.read_bytes(), path, "k")


def test_the_start_of_a_block_says_how_many_rows_it_has(tmp_path):
    written(tmp_path / "b", rows=range(300))
    assert len((tmp_path / "b").read_bytes()) > HEAD_BYTES
    assert rows_claimed((tmp_path / "b").read_bytes()[:HEAD_BYTES], "b") == 300
    with pytest.raises(DamagedBlock, match="its header is damaged"):
        rows_claimed((tmp_path / "b").read_bytes()[:50], "b")


def test_a_header_has_one_spelling(tmp_path):
    written(tmp_path / "b")
    good = (tmp_path / "b").read_bytes()
    for odd in (good.replace(b"} ", b"}\n", 1), good.replace(b'"n": 5', b'"n":  5').replace(b"}  ", b"} ", 1)):
        assert (len(odd), odd != good) == (len(good), True)
        (tmp_path / "odd").write_bytes(odd)
        with pytest.raises(DamagedBlock, match="its header is damaged"):
            open_block(tmp_path / "odd", "k")


@pytest.mark.parametrize("size", [0, 5, 200, 10_000])
def test_a_foreign_file_is_found(tmp_path, size):
    (tmp_path / "b").write_bytes(np.random.default_rng(0).bytes(size))
    with pytest.raises(DamagedBlock, match="is not a block of logits"):
        open_block(tmp_path / "b", "k")


def test_another_teachers_block_is_not_taken(tmp_path):
    written(tmp_path / "b", key="other")
    with pytest.raises(DamagedBlock, match="holds the logits of other, not of k"):
        open_block(tmp_path / "b", "k")


def test_a_header_that_claims_another_size_is_not_believed(tmp_path):
    """Well-formed, of the right length, and wrong: only the checksum over the header can tell."""
    written(tmp_path / "b", rows=[1], h=2, c=16)  # 40 bytes of ids and shapes: padded to 64
    data = (tmp_path / "b").read_bytes()
    assert data.count(b'"values": 32') == 1
    forged = data.replace(b'"values": 32', b'"values": 64') + bytes(64)
    (tmp_path / "forged").write_bytes(forged)
    with pytest.raises(DamagedBlock, match="do not match its checksum"):
        open_block(tmp_path / "forged", "k")


NO_MAPS = """
import resource, sys
from pathlib import Path
from raykd.logits.block import open_block
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, size + 2**24))
open_block(Path(sys.argv[1]), "k")
"""


def test_a_block_that_cannot_be_mapped_says_what_to_raise(tmp_path):
    """As where there are more blocks than maps: the system's error is the same, and speaks of memory."""
    with (tmp_path / "b").open("wb") as file:
        file.truncate(2**30)
    done = subprocess.run([sys.executable, "-c", NO_MAPS, tmp_path / "b"], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"raykd.common.errors.StoreError: {tmp_path / 'b'}: it cannot be mapped")
    assert "sysctl -w vm.max_map_count" in said
    assert "logits.block_rows" in said


def test_the_checksum_is_read_once_per_process_and_file(tmp_path, monkeypatch):
    reads = []
    real = hashlib.file_digest
    monkeypatch.setattr(block_module.hashlib, "file_digest", lambda *a: reads.append(a) or real(*a))
    written(tmp_path / "b")
    written(tmp_path / "c", rows=range(9))
    open_block(tmp_path / "b", "k", verify=False)
    assert len(reads) == 0
    open_block(tmp_path / "b", "k")
    open_block(tmp_path / "b", "k")
    assert len(reads) == 1
    os.replace(tmp_path / "c", tmp_path / "b")  # another file under a name that was verified
    open_block(tmp_path / "b", "k")
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (np.float32([[1, 2]]), r"row 1 must be \(H, C\) float16, not \(1, 2\) float32"),
        (np.float16([1, 2]), "row 1 must be"),
        (np.zeros((2, 0), np.float16), "row 1 must be"),
        (np.float16([[1, np.nan]]), "logits of row 1 are not finite"),
        (np.float16([[1, np.inf]]), "logits of row 1 are not finite"),
    ],
)
def test_bad_logits_are_refused_and_leave_nothing(tmp_path, bad, match):
    with pytest.raises(ValueError, match=match):
        write_block(tmp_path / "b", "k", ids(range(2)), inputs(range(2)), [logits(0), bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.zeros((2, 1, 2)), np.zeros((2, 2), np.float16), np.full((2, 1, 2), np.nan, "e")])
def test_one_array_of_bad_logits_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="logits of row"):
        write_block(tmp_path / "b", "k", ids(range(2)), inputs(range(2)), bad)


def test_lengths_and_ids_are_checked(tmp_path):
    for a, b, n in [(2, 2, 1), (2, 1, 2), (1, 2, 2), (0, 0, 0)]:
        with pytest.raises(ValueError, match=f"{a} row ids, {b} input hashes, {n} logits"):
            write_block(tmp_path / "b", "k", ids(range(a)), inputs(range(b)), [logits(0)] * n)
    for wrong in (ids(range(2)).astype(np.int64), ids(range(2))[:, :8], ids(range(2))[0]):
        with pytest.raises(ValueError, match="must be \\(n, 16\\) uint8"):
            write_block(tmp_path / "b", "k", wrong, inputs(range(2)), [logits(0)] * 2)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space left"):
        written(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_damage_survives_pickling():
    damage = pickle.loads(pickle.dumps(DamagedBlock(Path("x"), "why")))
    assert (damage.path, damage.reason, str(damage)) == (Path("x"), "why", "x: why")
