import json
import logging
import os
import pickle
import time

import numpy as np
import pytest
from made_up_logits import flip, ids, inputs, key, logits, write_blocks
from teacher_rows import TeacherRows

from raykd.common.errors import StoreError
from raykd.logits import TeacherKey, TeacherLogits
from raykd.logits.teacher_logits import block_name


def expect(teacher: TeacherLogits, rows, name: str = "a") -> None:
    found = TeacherRows(teacher, ids(rows), inputs(rows))
    assert len(found) == len(rows)
    for row, value in zip(rows, found, strict=True):
        np.testing.assert_array_equal(value, logits(row, name))


def test_metadata_is_not_part_of_the_key():
    same = TeacherKey("a", "p", "s", "float32", metadata={"name": "otherwise"})
    assert same == key()
    assert same.fingerprint == key().fingerprint
    changed = [key("b"), key(processor="q"), key(preprocessing="q"), key(dtype="bfloat16")]
    assert len({k.fingerprint for k in [key(), *changed]}) == 5
    assert str(key()) == "teacher 'Teacher a'"
    assert str(TeacherKey("a", "p", "s", "d")).startswith("teacher '")


def test_opening_creates_nothing(tmp_path):
    teacher = TeacherLogits(tmp_path / "store", key())
    assert teacher.missing(ids(range(3)), inputs(range(3))).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_only_new_rows_are_missing(tmp_path):
    write_blocks(TeacherLogits(tmp_path, key()), range(10))
    teacher = TeacherLogits(tmp_path, key())
    shuffled, filtered, grown = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5], [8, 3, 5], [11, *range(9, -1, -1), 10]
    for rows in (range(10), shuffled, filtered):
        assert teacher.missing(ids(rows), inputs(rows)).tolist() == []
        expect(teacher, rows)
    assert teacher.missing(ids(grown), inputs(grown)).tolist() == [0, 11]
    write_blocks(teacher, grown)
    expect(teacher, grown)
    assert sum(len(b.row_ids) for b in teacher.blocks.values()) == 12  # nothing was stored twice


def test_equal_rows_are_computed_once(tmp_path):
    teacher, rows = TeacherLogits(tmp_path, key()), [3, 1, 3, 2, 1, 3]
    assert teacher.missing(ids(rows), inputs(rows)).tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="each row once"):
        teacher.add(ids(rows), inputs(rows), [logits(r) for r in rows])
    write_blocks(teacher, rows)
    expect(teacher, rows)


def test_another_keys_logits_are_never_returned(tmp_path):
    write_blocks(TeacherLogits(tmp_path, key("a")), range(6))
    other = TeacherLogits(tmp_path, key("b"))  # as a teacher that was trained again with another seed
    assert len(other.missing(ids(range(6)), inputs(range(6)))) == 6
    write_blocks(other, range(6))
    expect(other, range(6), "b")
    expect(TeacherLogits(tmp_path, key("a")), range(6), "a")


def test_another_keys_block_in_the_folder_is_quarantined(tmp_path, caplog):
    other, mine = TeacherLogits(tmp_path, key("b")), TeacherLogits(tmp_path, key("a"))
    (path,) = write_blocks(other, range(3))
    write_blocks(mine, range(100, 103))
    (mine.files.path / path.name).write_bytes(path.read_bytes())
    assert mine.missing(ids(range(3)), inputs(range(3))).tolist() == [0, 1, 2]
    assert f"holds the logits of {key('b').fingerprint}" in caplog.text
    assert path.exists()  # where it belongs


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_bytes(np.random.default_rng(0).bytes(999))


def flip_magic(path):
    flip(path, 3)


def flip_header(path):
    flip(path, path.read_bytes().index(b'"n"') + 5)


def flip_id(path):
    flip(path, path.read_bytes().index(ids([5]).tobytes()) + 3)


def flip_value(path):
    flip(path, -1)


@pytest.mark.parametrize(
    "damage",
    [cut, half, empty, foreign, flip_magic, flip_header, flip_id, flip_value],
    ids=lambda d: d.__name__,
)
def test_a_damaged_block_is_quarantined_and_computed_again(tmp_path, damage, caplog):
    paths = write_blocks(TeacherLogits(tmp_path, key()), range(12))
    whole = paths[1].read_bytes()
    damage(paths[1])
    with caplog.at_level(logging.WARNING, "raykd"):
        teacher = TeacherLogits(tmp_path, key())
    assert [d.path for d in teacher.damaged] == [paths[1]]
    assert teacher.damaged[0].reason in caplog.text
    assert str(paths[1]) in caplog.text
    assert not paths[1].exists()
    assert paths[1].with_name(f"{paths[1].name}.damaged").exists()
    assert teacher.missing(ids(range(12)), inputs(range(12))).tolist() == [4, 5, 6, 7]
    assert write_blocks(teacher, range(12)) == [paths[1]]
    assert paths[1].read_bytes() == whole
    expect(teacher, range(12))
    again = TeacherLogits(tmp_path, key())
    assert again.damaged == []
    expect(again, range(12))


def test_add_replaces_a_damaged_block(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    (path,) = write_blocks(teacher, range(4))
    flip(path, -1)
    again = TeacherLogits(tmp_path, key())
    assert write_blocks(again, range(4)) == [path]
    expect(TeacherLogits(tmp_path, key()), range(4))


def test_a_read_only_store_with_damage_can_be_read(tmp_path, monkeypatch, caplog):
    paths = write_blocks(TeacherLogits(tmp_path, key()), range(8))
    cut(paths[0])
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    teacher = TeacherLogits(tmp_path, key())
    assert teacher.missing(ids(range(8)), inputs(range(8))).tolist() == [0, 1, 2, 3]
    assert "could not rename it: read-only" in caplog.text


def test_the_cost_of_computing_adds_up(tmp_path):
    assert TeacherLogits(tmp_path, key()).cost() == {"rows": 0, "compute_seconds": 0.0}
    TeacherLogits(tmp_path, key()).note_cost(100, 2.5)
    TeacherLogits(tmp_path, key()).note_cost(20, 0.5)
    assert TeacherLogits(tmp_path, key()).cost() == {"rows": 120, "compute_seconds": 3.0}
    assert TeacherLogits(tmp_path, key()).blocks == {}, "it is no block"


def test_files_of_others_are_left_alone(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(4))
    (teacher.files.path / "README").write_text("hello")
    (teacher.files.path / ".x.block.0.tmp").write_text("someone is writing")
    again = TeacherLogits(tmp_path, key())
    assert again.damaged == []
    write_blocks(again, range(8))
    assert (teacher.files.path / "README").exists()
    assert (teacher.files.path / ".x.block.0.tmp").exists()


def test_a_killed_writers_drafts_are_deleted_after_a_day(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(4))
    left = teacher.files.path / ".x.block.0.tmp"
    left.write_text("half")
    os.utime(left, (0, time.time() - 25 * 3600))
    write_blocks(TeacherLogits(tmp_path, key()), range(8))
    assert not left.exists()


@pytest.mark.parametrize("part", ["weights", "processor", "preprocessing", "dtype", "format"])
def test_a_manifest_that_disagrees_names_the_part(tmp_path, part):
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(4))
    path = teacher.files.path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["about"] == {"name": "Teacher a"}
    (manifest if part == "format" else manifest["key"])[part] = "something else"
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=f"teacher 'Teacher a': {part} is .* says 'something else'"):
        TeacherLogits(tmp_path, key())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "key": 3}'])
def test_the_error_about_a_broken_manifest_has_a_fix(tmp_path, text):
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(4))
    (teacher.files.path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read .* Delete this file"):
        TeacherLogits(tmp_path, key())
    (teacher.files.path / "manifest.json").unlink()  # the mend works
    again = TeacherLogits(tmp_path, key())
    write_blocks(again, range(6))
    expect(again, range(6))
    assert json.loads((teacher.files.path / "manifest.json").read_text())["key"] == key().parts


def test_a_row_that_is_fed_differently_is_an_error(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(4))
    rows = [9, 1, 2]
    changed = inputs(rows)
    changed[1:] = inputs([1, 2], tokenizer=b"another")
    said = r"'Teacher a': row 1 \(and 1 more of .*\) is stored with another input hash.*tokenizer.*delete that"
    with pytest.raises(StoreError, match=said):
        teacher.missing(ids(rows), changed)
    with pytest.raises(StoreError, match=said):
        TeacherRows(teacher, ids(rows), changed)
    with pytest.raises(StoreError, match=r"row 0 \(and 3 more of .*another input hash"):
        teacher.add(ids(range(4)), inputs(range(4), b"another"), [logits(r) for r in range(4)])
    expect(teacher, range(4))


def test_equal_rows_that_are_fed_differently_are_an_error(tmp_path):
    rows = [5, 6, 5]
    changed = inputs(rows)
    changed[2] = inputs([5], b"another")
    with pytest.raises(StoreError, match=r"rows 0 and 2 .* have the same row id but different inputs"):
        TeacherLogits(tmp_path, key()).missing(ids(rows), changed)


@pytest.mark.parametrize("n", [2, 4])
def test_ids_and_hashes_must_be_as_many(tmp_path, n):
    with pytest.raises(ValueError, match=f"3 row ids, {n} input hashes"):
        TeacherLogits(tmp_path, key()).missing(ids(range(3)), inputs(range(n)))


def test_refresh_sees_blocks_that_others_wrote_and_removed(tmp_path):
    reader, writer = TeacherLogits(tmp_path, key()), TeacherLogits(tmp_path, key())
    first = write_blocks(writer, range(4))
    assert [b.path for b in reader.refresh()] == first
    second = write_blocks(writer, range(8))
    assert [b.path for b in reader.refresh()] == second
    assert reader.refresh() == []
    first[0].unlink()
    assert reader.missing(ids(range(8)), inputs(range(8))).tolist() == [0, 1, 2, 3]  # refreshes by itself


def test_a_block_that_vanishes_while_the_folder_is_listed_is_missing(tmp_path, monkeypatch):
    paths = write_blocks(TeacherLogits(tmp_path, key()), range(8))

    def open_or_vanish(path, *args):
        if path == paths[0]:
            raise FileNotFoundError(path)
        return real(path, *args)

    from raykd.logits import local as folder

    real = folder.open_block
    monkeypatch.setattr(folder, "open_block", open_or_vanish)
    assert TeacherLogits(tmp_path, key()).missing(ids(range(8)), inputs(range(8))).tolist() == [0, 1, 2, 3]


def test_adding_a_block_twice_changes_nothing(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    (path,) = write_blocks(teacher, range(4))
    before = path.stat()
    for writer in (teacher, TeacherLogits(tmp_path, key())):
        assert writer.add(ids(range(4)), inputs(range(4)), [logits(r) for r in range(4)]) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_overlapping_blocks_serve_all_rows(tmp_path):
    teacher = TeacherLogits(tmp_path, key())
    for rows in (range(0, 6), range(4, 10), range(2, 9)):
        teacher.add(ids(rows), inputs(rows), [logits(r) for r in rows])
    assert teacher.missing(ids(range(12)), inputs(range(12))).tolist() == [10, 11]
    expect(teacher, range(10))


def test_skipped_blocks_are_not_opened(tmp_path, monkeypatch):
    """Or a replica's look before each block would cost the more, the more is stored."""

    def add(teacher, rows):
        return teacher.add(ids(rows), inputs(rows), [logits(r) for r in rows])

    def missing(teacher, rows):
        return teacher.missing(ids(rows), inputs(rows)).tolist()

    stored = write_blocks(TeacherLogits(tmp_path, key()), range(8))
    one, two, three = range(8, 12), range(12, 16), range(16, 20)
    disjoint = [*(path.name for path in stored), *(block_name(ids(rows)) for rows in (one, two, three))]
    looked = []
    real = TeacherLogits.match
    monkeypatch.setattr(TeacherLogits, "match", lambda self, *a: looked.append(a[0].path) or real(self, *a))
    mine, other = (TeacherLogits(tmp_path, key(), disjoint) for _ in range(2))
    assert missing(mine, one) == [0, 1, 2, 3]
    written = add(mine, one)
    assert missing(mine, two) == missing(other, two) == [0, 1, 2, 3]
    assert looked == []
    assert missing(other, one) == [], "who is asked for the very same block finds it"
    assert looked == [written]
    foreign = add(TeacherLogits(tmp_path, key()), range(14, 18))  # of someone with another order
    looked.clear()
    assert missing(mine, two) == [0, 1]
    assert missing(mine, three) == [2, 3]
    assert set(looked) == {foreign}
    flip(written, -1)
    assert missing(TeacherLogits(tmp_path, key(), disjoint), one) == [0, 1, 2, 3], "a damaged one is none"


def test_a_store_is_opened_anew_where_it_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = TeacherLogits("store", key())
    write_blocks(teacher, range(40), c=100)
    data = pickle.dumps(teacher)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert copy.key.metadata == {"name": "Teacher a"}
    assert copy.missing(ids(range(41)), inputs(range(41))).tolist() == [40]
