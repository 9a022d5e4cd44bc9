"""A student that starts before its teachers have finished: rows arrive while it waits."""

import multiprocessing
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_logits import expected, flip, ids, inputs, key, logits, write_blocks

from raykd.common.errors import StoreError
from raykd.logits import StoredLogits, TeacherKey, TeacherLogits
from raykd.logits import local as folder


def partial(store: Path, rows, teachers="ab") -> StoredLogits:
    opened = [TeacherLogits(store, key(t)) for t in teachers]
    return StoredLogits(opened, ids(rows), [inputs(rows)] * len(teachers), partial=True)


def test_rows_arrive_teacher_by_teacher(tmp_path):
    data = partial(tmp_path, range(8))
    a, b = (TeacherLogits(tmp_path, key(t)) for t in "ab")
    assert (len(data), data.complete) == (8, False)
    assert data.lacking([0, 7]) == ["Teacher a", "Teacher b"]
    assert data.lacking([]) == []
    write_blocks(a, range(4))
    assert data.lacking([0, 3]) == ["Teacher a", "Teacher b"]  # as of the last refresh
    data.refresh()
    assert data.lacking([0, 3]) == ["Teacher b"]
    assert data.lacking([3, 4]) == ["Teacher a", "Teacher b"]
    with pytest.raises(StoreError, match="rows of this batch are not stored yet by Teacher b"):
        data[[1, 3]]
    write_blocks(b, range(2, 8))
    data.refresh()
    assert data.lacking(np.array([2, 3])) == []
    np.testing.assert_array_equal(data[[3, 2]], expected([3, 2], "ab"))
    assert data.lacking([0, 4]) == ["Teacher a", "Teacher b"]
    assert data.shapes[[0, 7]].tolist() == [[2, 3], [2, 5]]  # of whichever teacher has it
    write_blocks(a, range(8))
    write_blocks(b, range(8))
    data.refresh()
    assert data.complete
    assert data.lacking(range(8)) == []
    np.testing.assert_array_equal(data[range(8)], expected(range(8), "ab"))


def test_a_complete_one_never_looks_again(tmp_path):
    write_blocks(TeacherLogits(tmp_path, key()), range(5), c=3)
    data = partial(tmp_path, range(5), "a")
    assert data.complete
    kept = data.shapes
    while kept.base is not None:
        kept = kept.base
    assert kept.nbytes == 8  # all the same: kept once
    shutil.rmtree(tmp_path)
    tmp_path.write_text("no folder any more")
    data.refresh()
    np.testing.assert_array_equal(data[[4, 0]], expected([4, 0], "a", c=3))


def test_a_teacher_without_a_name_is_called_by_its_fingerprint(tmp_path):
    nameless = TeacherKey("w", "p", "s", "d")
    data = StoredLogits([TeacherLogits(tmp_path, nameless)], ids([1]), [inputs([1])], partial=True)
    assert data.lacking([0]) == [nameless.fingerprint[:12]]


def test_only_new_blocks_are_looked_into(tmp_path, monkeypatch):
    looked = []
    real = TeacherLogits.match
    monkeypatch.setattr(TeacherLogits, "match", lambda self, *a: looked.append(a[0].path) or real(self, *a))
    first = write_blocks(TeacherLogits(tmp_path, key()), range(8))
    data = partial(tmp_path, range(16), "a")
    assert sorted(looked) == sorted(first)
    for _ in range(3):
        data.refresh()
    assert len(looked) == len(first)
    second = write_blocks(TeacherLogits(tmp_path, key()), range(12))
    looked.clear()
    data.refresh()
    assert looked == second


def test_a_folder_is_not_listed_again_without_need(tmp_path, monkeypatch):
    listed = []
    real = folder.os.scandir
    monkeypatch.setattr(folder.os, "scandir", lambda path: listed.append(path) or real(path))
    teacher, data = TeacherLogits(tmp_path, key()), partial(tmp_path, range(8), "a")
    (path,) = write_blocks(teacher, range(4))
    changed = path.parent.stat()
    data.refresh()
    listed.clear()
    for _ in range(50):
        data.refresh()
    assert len(listed) <= 1  # one a second at most
    write_blocks(teacher, range(8))
    # As where the clock of the file system ticks so slowly that the second block came in the same tick.
    folder.os.utime(path.parent, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    monkeypatch.setattr(folder, "RELIST_SECONDS", 0.0)
    data.refresh()
    assert data.complete


def test_a_recent_listing_will_do(tmp_path):
    """But not for the block with exactly the rows that are asked for."""
    reader, writer = TeacherLogits(tmp_path, key(), ["some.block"]), TeacherLogits(tmp_path, key())
    write_blocks(writer, range(8), block=4)
    both, other = range(8), range(4, 8)
    assert len(reader.missing(ids(both), inputs(both), max_age=3600)) == 8
    assert len(reader.missing(ids(other), inputs(other), max_age=3600)) == 0
    assert len(reader.missing(ids(both), inputs(both), max_age=0)) == 0


@pytest.mark.parametrize("same_object", [True, False])
def test_the_same_teacher_can_be_listed_twice(tmp_path, same_object):
    one = TeacherLogits(tmp_path, key())
    pair = [one, one if same_object else TeacherLogits(tmp_path, key())]
    data = StoredLogits(pair, ids(range(6)), [inputs(range(6))] * 2, partial=True)
    for rows in (range(3), range(6)):
        write_blocks(TeacherLogits(tmp_path, key()), rows)
        data.refresh()
        assert data.lacking(rows) == []
        np.testing.assert_array_equal(data[rows], expected(rows, "aa"))
    assert data.complete


def test_two_readers_share_a_teacher(tmp_path):
    """What one of them makes the teacher see is not lost to the other."""
    teacher = TeacherLogits(tmp_path, key())
    train, test = (StoredLogits([teacher], ids(r), [inputs(r)], partial=True) for r in (range(4), range(2, 6)))
    write_blocks(TeacherLogits(tmp_path, key()), range(6), block=6)
    train.refresh()
    assert teacher.missing(ids(range(6)), inputs(range(6))).tolist() == []
    test.refresh()
    np.testing.assert_array_equal(train[[3]], expected([3], "a"))
    np.testing.assert_array_equal(test[[3]], expected([5], "a"))
    assert train.complete
    assert test.complete


def test_teachers_whose_decisions_do_not_line_up_are_found_when_the_rows_arrive(tmp_path):
    data = partial(tmp_path, range(4))
    a, b = (TeacherLogits(tmp_path, key(t)) for t in "ab")
    write_blocks(b, range(4), c=5)
    data.refresh()
    a.add(ids(range(4)), inputs(range(4)), [logits(r, "a", c=6 if r == 2 else 5) for r in range(4)])
    said = r"row 2 .* \(2, 5\) from teacher 'Teacher b' and \(2, 6\) from teacher 'Teacher a'"
    for _ in range(2):  # it does not go away
        with pytest.raises(StoreError, match=said):
            data.refresh()
    assert data.lacking([0]) == ["Teacher a"]


def test_a_row_that_is_fed_differently_is_found_when_it_arrives(tmp_path):
    data = partial(tmp_path, range(4), "a")
    TeacherLogits(tmp_path, key()).add(ids([7, 2]), inputs([7, 2], b"another"), [logits(7), logits(2)])
    with pytest.raises(StoreError, match=r"row 2 .*another input hash"):
        data.refresh()


def test_a_damaged_block_is_quarantined_and_its_rows_stay_lacking(tmp_path):
    data = partial(tmp_path, range(8), "a")
    paths = write_blocks(TeacherLogits(tmp_path, key()), range(8))
    flip(paths[0], -1)
    data.refresh()
    assert data.lacking(range(4, 8)) == []
    assert data.lacking(range(4)) == ["Teacher a"]
    assert not paths[0].exists()
    write_blocks(TeacherLogits(tmp_path, key()), range(8))
    data.refresh()
    assert data.complete
    np.testing.assert_array_equal(data[range(8)], expected(range(8), "a"))


def test_damage_that_cannot_be_quarantined_is_read_once(tmp_path, monkeypatch, caplog):
    data = partial(tmp_path, range(4), "a")
    (path,) = write_blocks(TeacherLogits(tmp_path, key()), range(4))
    whole = path.read_bytes()
    flip(path, -1)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    monkeypatch.setattr(folder, "RELIST_SECONDS", 0.0)
    for _ in range(5):
        data.refresh()
    assert caplog.text.count("do not match its checksum") == 1
    path.write_bytes(whole)  # who may write has mended it
    data.refresh()
    assert data.complete


def test_known_rows_stay_readable_when_their_file_is_deleted(tmp_path):
    teacher, data = TeacherLogits(tmp_path, key()), partial(tmp_path, range(8), "a")
    (path,) = write_blocks(teacher, range(4))
    data.refresh()
    path.replace(path.with_suffix(".block.damaged"))  # as another process does that finds it damaged
    data.refresh()
    assert data.lacking(range(4)) == []
    write_blocks(TeacherLogits(tmp_path, key()), range(8))  # the first four are written a second time
    data.refresh()
    assert data.complete
    np.testing.assert_array_equal(data[range(8)], expected(range(8), "a"))


def test_it_pickles_with_missing_rows(tmp_path):
    data = partial(tmp_path, range(8))
    for teacher in "ab":
        write_blocks(TeacherLogits(tmp_path, key(teacher)), range(4))
    copy = pickle.loads(pickle.dumps(data))
    assert copy.lacking([3]) == []
    assert copy.lacking([4]) == ["Teacher a", "Teacher b"]
    for teacher in "ab":
        write_blocks(TeacherLogits(tmp_path, key(teacher)), range(8))
    with pytest.raises(StoreError, match="not stored yet"):
        copy[[4]]
    copy.refresh()
    assert copy.complete


def test_no_rows_are_complete(tmp_path):
    assert partial(tmp_path, []).complete


@settings(max_examples=30)
@given(
    rows=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    arrivals=st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 20), min_size=1, max_size=9, unique=True)), max_size=12
    ),
    fixed=st.booleans(),
)
def test_the_reader_always_has_the_blocks_that_have_arrived(rows, arrivals, fixed):
    """Repeated rows, overlapping blocks, in any order: as a plain set of what each teacher has written."""
    shape = {"c": 4} if fixed else {}
    with tempfile.TemporaryDirectory() as where:
        data = partial(Path(where), rows)
        have: dict[str, set[int]] = {"a": set(), "b": set()}
        for teacher, block in [*arrivals, ("a", list(range(21))), ("b", list(range(21)))]:
            writer = TeacherLogits(Path(where), key(teacher))
            writer.add(ids(block), inputs(block), [logits(r, teacher, **shape) for r in block])
            have[teacher] |= set(block)
            data.refresh()
            for i, row in enumerate(rows):
                assert data.lacking([i]) == [f"Teacher {t}" for t in "ab" if row not in have[t]]
            there = [i for i, row in enumerate(rows) if row in have["a"] & have["b"]]
            if there:
                np.testing.assert_array_equal(data[there], expected([rows[i] for i in there], "ab", **shape))
            assert data.complete == (len(there) == len(rows))
        assert data.complete


def fill_slowly(store: Path, name: str, blocks: int) -> None:
    teacher = TeacherLogits(store, key(name))
    for start in range(0, 4 * blocks, 4):
        rows = range(start, start + 4)
        teacher.add(ids(rows), inputs(rows), [logits(r, name) for r in rows])


def test_a_reader_follows_processes_that_write(tmp_path):
    blocks = 60
    data = partial(tmp_path, range(4 * blocks))
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=fill_slowly, args=(tmp_path, t, blocks)) for t in "ab"]
    for writer in writers:
        writer.start()
    seen, deadline = set(), time.monotonic() + 60
    while not data.complete and time.monotonic() < deadline:
        data.refresh()
        there = [i for i in range(len(data)) if not data.lacking([i])]
        if there:
            np.testing.assert_array_equal(data[there], expected(there, "ab"))
        seen.add(len(there))
    assert data.complete
    assert len(seen) > 2  # it did not just wait for the end
    for writer in writers:
        writer.join(20)
    assert [w.exitcode for w in writers] == [0, 0]
