import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_logits import expected, ids, inputs, key, logits, write_blocks
from teacher_rows import TeacherRows

from raykd.common.errors import StoreError
from raykd.logits import StoredLogits, TeacherLogits


def stored(store: Path, rows, teachers="abc", block: int = 4, **shape) -> StoredLogits:
    opened = [TeacherLogits(store, key(t)) for t in teachers]
    for teacher in opened:
        write_blocks(teacher, sorted(set(rows)), block, **shape)
    return StoredLogits(opened, ids(rows), [inputs(rows)] * len(teachers))


@pytest.mark.parametrize("shape", [{}, {"c": 6}, {"h": 1, "c": 2}])
def test_a_batch_is_teachers_by_rows_by_decisions_by_classes(tmp_path, shape):
    rows = [5, 2, 9, 0, 7, 3, 3, 8]
    data = stored(tmp_path, rows, **shape)
    for batch in ([0, 3, 5], [7], [4, 4, 6, 5], list(range(8)), np.array([-1, 2])):
        got = data[batch]
        assert got.dtype == np.float16
        assert got.flags.c_contiguous
        assert got.flags.writeable
        np.testing.assert_array_equal(got, expected([rows[i] for i in batch], **shape))
    assert len(data) == 8


def test_padding_is_zero_up_to_the_longest_of_the_batch(tmp_path):
    data = stored(tmp_path, [0, 1, 4])  # C = 3, 4, 7
    assert data.shapes.tolist() == [[2, 3], [2, 4], [2, 7]]
    assert data[[0, 1]].shape == (3, 2, 2, 4)
    whole = data[[0, 2]]
    assert whole.shape == (3, 2, 2, 7)
    assert (whole[:, 0, :, 3:] == 0).all()
    assert (whole[:, 1] != 0).all()
    assert data[[]].shape[:2] == (3, 0)


def test_rows_that_differ_in_decisions_are_padded_too(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    values = [logits(0, h=1, c=3), logits(1, h=4, c=2)]
    teacher.add(ids(range(2)), inputs(range(2)), values)
    got = StoredLogits([teacher], ids(range(2)), [inputs(range(2))])[[1, 0]]
    assert got.shape == (1, 2, 4, 3)
    np.testing.assert_array_equal(got[0, 0, :, :2], values[1])
    np.testing.assert_array_equal(got[0, 1, :1], values[0])
    assert np.count_nonzero(got) == 8 + 3


def test_an_index_outside_the_data_is_an_error(tmp_path):
    data = stored(tmp_path, range(4), c=3)
    with pytest.raises(IndexError):
        data[[4]]


def test_missing_rows_are_named(tmp_path):
    data = [TeacherLogits(tmp_path, key(t)) for t in "ab"]
    write_blocks(data[0], range(5))
    write_blocks(data[1], range(3))
    with pytest.raises(StoreError, match=r"teacher 'Teacher b': 2 of 5 distinct rows are not stored in .*missing"):
        StoredLogits(data, ids(range(5)), [inputs(range(5))] * 2)


def test_each_teacher_has_its_own_input_hashes(tmp_path):
    a, b = TeacherLogits(tmp_path, key("a")), TeacherLogits(tmp_path, key("b"))
    write_blocks(a, range(3))
    b.add(ids(range(3)), inputs(range(3), b"words"), [logits(r, "b") for r in range(3)])
    good = StoredLogits([a, b], ids(range(3)), [inputs(range(3)), inputs(range(3), b"words")])
    np.testing.assert_array_equal(good[[2, 0]], expected([2, 0], "ab"))
    with pytest.raises(StoreError, match=r"teacher 'Teacher b': row 0 .*another input hash"):
        StoredLogits([a, b], ids(range(3)), [inputs(range(3))] * 2)


def test_teachers_whose_decisions_do_not_line_up_are_refused(tmp_path):
    a, b = TeacherLogits(tmp_path, key("a")), TeacherLogits(tmp_path, key("b"))
    write_blocks(a, range(4), c=5)
    b.add(ids(range(4)), inputs(range(4)), [logits(r, "b", c=6 if r == 2 else 5) for r in range(4)])
    said = r"row 2 .* \(2, 5\) from teacher 'Teacher a' and \(2, 6\) from teacher 'Teacher b'"
    with pytest.raises(StoreError, match=said):
        StoredLogits([a, b], ids(range(4)), [inputs(range(4))] * 2)


def test_teachers_and_hashes_must_be_as_many(tmp_path):
    for teachers, hashes in [(0, 0), (1, 2)]:
        with pytest.raises(ValueError, match=f"{teachers} teachers, input hashes of {hashes}"):
            StoredLogits([TeacherLogits(tmp_path, key())] * teachers, ids(range(2)), [inputs(range(2))] * hashes)


def test_it_pickles_as_folders_and_ids(tmp_path):
    rows = [3, 1, 2, 1]
    data = stored(tmp_path, rows, c=2000)
    pickled = pickle.dumps(data)
    assert len(pickled) < 3000  # not 3 * 4 * 8 kB of logits
    np.testing.assert_array_equal(pickle.loads(pickled)[[3, 0]], expected([1, 3], c=2000))


def test_mapped_blocks_stay_readable_when_their_file_is_deleted(tmp_path):
    data = stored(tmp_path, range(8))
    for path in tmp_path.rglob("*.block"):
        path.unlink()
    np.testing.assert_array_equal(data[[6, 1]], expected([6, 1]))


def test_one_teachers_rows_in_order_for_scoring(tmp_path):
    rows = [4, 0, 9, 4]
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(10))
    found = TeacherRows(teacher, ids(rows), inputs(rows))
    for got, row in zip(list(found), rows, strict=True):
        np.testing.assert_array_equal(got, logits(row))
        assert not got.flags.writeable
    assert [v.shape for v in found[1:3]] == [(2, 3), (2, 7)]
    np.testing.assert_array_equal(found[-2], logits(9))
    assert found.shapes.tolist() == [[2, 7], [2, 3], [2, 7], [2, 7]]
    assert len(TeacherRows(teacher, ids([]), inputs([]))) == 0


@settings(max_examples=30)
@given(
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    cuts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True), min_size=2, max_size=2),
    block=st.integers(1, 9),
    fixed=st.booleans(),
    picks=st.data(),
)
def test_any_batch_of_any_rows_in_any_blocks(rows, cuts, block, fixed, picks):
    """Overlapping blocks of any cut, duplicated rows, any batch: the same as a plain dict of rows."""
    shape = {"c": 4} if fixed else {}
    with tempfile.TemporaryDirectory() as folder:
        for teacher, cut in zip("ab", cuts, strict=True):
            opened = TeacherLogits(Path(folder), key(teacher))
            opened.add(ids(cut), inputs(cut), [logits(r, teacher, **shape) for r in cut])
            opened.add(ids(cut[::-1]), inputs(cut[::-1]), [logits(r, teacher, **shape) for r in cut[::-1]])
        data = stored(Path(folder), rows, "ab", block, **shape)
        batch = picks.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
        np.testing.assert_array_equal(data[batch], expected([rows[i] for i in batch], "ab", **shape))


READ_ALL = """
import sys, pickle, numpy as np
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
from raykd.logits import StoredLogits
for path in sys.argv[1:]:  # the first, small store takes what a process needs once
    before = private()
    data = pickle.load(open(path, "rb"))
    for start in range(0, len(data), 32):
        data[np.arange(start, min(start + 32, len(data)))]
print(private() - before)
"""


def test_private_memory_does_not_grow_with_the_store(tmp_path):
    pickled = [tmp_path / "small", tmp_path / "large"]
    for path, rows in zip(pickled, (32, 1024), strict=True):
        data = stored(tmp_path / f"store of {rows}", range(rows), "ab", block=256, h=2, c=6000)
        path.write_bytes(pickle.dumps(data))
    size = sum(p.stat().st_size for p in (tmp_path / "store of 1024").rglob("*.block")) / 1024
    done = subprocess.run([sys.executable, "-c", READ_ALL, *pickled], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 0.1 * size, f"{done.stdout} kB of {size:.0f} kB"
