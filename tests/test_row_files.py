"""Rows on disk: drafts, the proof that they are whole, and what becomes of damaged ones."""

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from raykd.common import proof, shared_files
from raykd.common.atomic import STALE_SECONDS, new_file, new_folder, remove_stale
from raykd.common.errors import StoreError
from raykd.common.row_files import PROOF, ensure_rows, open_rows, save_rows

ROWS = {"text": [f"row {i}" for i in range(50)]}


@pytest.fixture
def folder(tmp_path):
    save_rows(Dataset.from_dict(ROWS), tmp_path / "data" / "x")
    return tmp_path / "data" / "x"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


DAMAGE = {
    "truncated": lambda folder: truncate(next(folder.glob("*.arrow"))),
    "flipped": lambda folder: flip(next(folder.glob("*.arrow"))),
    "a file is gone": lambda folder: next(folder.glob("*.arrow")).unlink(),
    "the proof is truncated": lambda folder: truncate(folder / PROOF),
    "of an older version": lambda folder: (folder / PROOF).unlink(),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_rows_are_never_opened_and_are_written_again(folder, kind, caplog):
    DAMAGE[kind](folder)
    with pytest.raises(StoreError, match=str(folder)):
        open_rows(folder)
    ensure_rows(folder, lambda scratch: Dataset.from_dict(ROWS))
    assert open_rows(folder)[:] == ROWS
    (aside,) = folder.parent.glob("x.damaged-*")
    assert aside.name in caplog.text
    assert len(caplog.records) == 1
    ensure_rows(folder, pytest.fail)  # whole ones are left as they are
    assert len(list(folder.parent.glob("x.damaged-*"))) == 1


def test_fewer_rows_than_were_written_are_no_whole_set(folder, tmp_path):
    """As when two drivers once shared a draft: each file was whole, and most rows were missing."""
    save_rows(Dataset.from_dict({"text": ROWS["text"][:7]}), tmp_path / "few")
    said = (tmp_path / "few" / PROOF).read_text().replace('"rows": 7', '"rows": 50')
    (tmp_path / "few" / PROOF).write_text(said)
    with pytest.raises(StoreError, match="7 rows instead of 50"):
        open_rows(tmp_path / "few")


def test_a_checksum_is_read_once_in_a_process(folder, monkeypatch):
    open_rows(folder)
    monkeypatch.setattr(proof, "_sha256", pytest.fail)
    assert open_rows(folder)[:] == ROWS
    monkeypatch.undo()
    flip(next(folder.glob("*.arrow")))  # another file under the same name is another file
    with pytest.raises(StoreError, match="checksum"):
        open_rows(folder)


def test_rows_that_are_written_again_are_opened_again(folder):
    assert open_rows(folder)[:] == ROWS
    shutil.rmtree(folder)
    save_rows(Dataset.from_dict({"text": ["other"]}), folder)
    assert open_rows(folder)[:] == {"text": ["other"]}


def save_with_the_same_number(folder: Path, start: multiprocessing.Event, text: list[str]) -> None:
    os.getpid = lambda: 7  # as in two containers
    start.wait()
    save_rows(Dataset.from_dict({"text": text}), folder)


def test_drivers_with_the_same_process_number_write_the_same_rows_at_once(tmp_path):
    spawn = multiprocessing.get_context("fork")
    start, text = spawn.Event(), [f"row {i}" for i in range(20_000)]
    drivers = [spawn.Process(target=save_with_the_same_number, args=(tmp_path / "x", start, text)) for _ in range(4)]
    for driver in drivers:
        driver.start()
    start.set()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0] * 4
    assert open_rows(tmp_path / "x")["text"][:] == text
    assert [path.name for path in tmp_path.iterdir()] == ["x"], "the losers' drafts are gone"


def half_written(new, path: Path) -> None:
    with new(path) as draft:
        (draft / "x" if draft.is_dir() else draft).write_text("half")
        raise ValueError("stop")


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_failed_write_leaves_no_draft(tmp_path, new):
    with pytest.raises(ValueError, match="stop"):
        half_written(new, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_killed_writers_are_removed_when_they_are_old(tmp_path):
    for name in ("old", "young"):
        (tmp_path / f".{name}.00.tmp").mkdir()
    then = (tmp_path / ".old.00.tmp").stat().st_mtime - STALE_SECONDS - 60
    os.utime(tmp_path / ".old.00.tmp", (then, then))
    remove_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".young.00.tmp"]


# Shared folders -----------------------------------------------------------------------------------


def test_a_shared_folder_that_still_hides_the_rows_is_looked_at_again(folder, monkeypatch, caplog):
    """On NFS a node may not see for a minute what another has written."""
    hidden, looks = folder.with_name("hidden"), []
    folder.rename(hidden)
    monkeypatch.setattr(shared_files, "file_system", lambda path: "nfs4")

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            hidden.rename(folder)

    listed: list[Path] = []
    monkeypatch.setattr(shared_files.time, "sleep", sleep)
    monkeypatch.setattr(shared_files, "list_anew", listed.append)  # it asks the server, so that it takes no minute
    assert open_rows(folder)[:] == ROWS
    assert len(looks) == 3
    assert listed[-3:] == [folder.parent, folder, folder / PROOF]
    assert str(folder / PROOF) in caplog.text


def test_a_file_that_never_appears_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "file_system", lambda path: "nfs4")
    monkeypatch.setattr(shared_files, "SHOWS_SECONDS", 0.05)
    monkeypatch.setattr(shared_files, "_LOOK_SECONDS", 0.01)
    with pytest.raises(StoreError, match="no such folder"):
        open_rows(tmp_path / "x")


def test_a_local_disk_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files.time, "sleep", pytest.fail)
    monkeypatch.setattr(shared_files, "file_system", lambda path: "ext4")
    assert not shared_files.seen(tmp_path / "x")


@pytest.mark.skipif(not shutil.which("findmnt"), reason="needs findmnt")
def test_the_type_of_a_file_system_is_the_systems(tmp_path):
    for path in (tmp_path, Path("/proc/self"), Path("/dev/shm")):
        said = os.popen(f"findmnt -n -o FSTYPE -T {path}").read().split()
        assert shared_files.file_system(path) == said[-1]
