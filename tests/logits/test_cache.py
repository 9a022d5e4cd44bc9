"""Local copies of blocks on a node, of originals in a folder that is not to be mapped itself."""

import gc
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_up_logits import expected, flip, ids, inputs, key, logits, write_blocks
from teacher_rows import TeacherRows

from raykd.common.errors import ConfigError, StoreError
from raykd.logits import LogitStore, StoredLogits, TeacherLogits, cache, local, object_store
from raykd.logits import block as block_module
from raykd.logits.logit_store import _cache


@pytest.fixture
def new_process(monkeypatch):
    """Call it to forget which files' checksums this process has read, as a new process would."""
    return lambda: monkeypatch.setattr(block_module, "_verified", set())


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The blocks that are read from a storage folder."""
    seen: list[str] = []
    real = local.LocalFiles.read
    monkeypatch.setattr(local.LocalFiles, "read", lambda self, name, *a: seen.append(name) or real(self, name, *a))
    return seen


def store(tmp_path: Path, node: str = "node", **options) -> LogitStore:
    return LogitStore(str(tmp_path / "storage"), str(tmp_path / node), **options)


def here(tmp_path: Path, node: str = "node") -> list[Path]:
    return sorted((tmp_path / node).rglob("*.block"))


def read(where: LogitStore, rows, teachers="a") -> StoredLogits:
    opened = [TeacherLogits(where, key(t)) for t in teachers]
    return StoredLogits(opened, ids(rows), [inputs(rows)] * len(teachers))


def test_it_maps_copies_that_equal_the_originals(tmp_path):
    write_blocks(TeacherLogits(tmp_path / "storage", key()), range(10))
    data = read(store(tmp_path), range(10))
    np.testing.assert_array_equal(data[range(10)], expected(range(10), "a"))
    originals = sorted((tmp_path / "storage").rglob("*.block"))
    assert [p.name for p in here(tmp_path)] == [p.name for p in originals]
    assert [p.read_bytes() for p in here(tmp_path)] == [p.read_bytes() for p in originals]
    maps = Path("/proc/self/maps").read_text()
    assert all(str(p) in maps for p in here(tmp_path))
    assert {p.name for p in (tmp_path / "node").rglob(".*")} == {".room.lock", ".total"}, "no locks pile up"


def test_a_block_is_fetched_once_and_a_written_one_never(tmp_path, reads):
    write_blocks(TeacherLogits(store(tmp_path), key()), range(10))
    assert [n for n in reads if n.endswith(".block")] == []
    for _ in range(2):
        np.testing.assert_array_equal(read(store(tmp_path), range(10))[[9, 1]], expected([9, 1], "a"))
    assert [n for n in reads if n.endswith(".block")] == []
    for _ in range(2):
        read(store(tmp_path, "other node"), range(10))
    assert len([n for n in reads if n.endswith(".block")]) == 3


@pytest.mark.parametrize(
    "damage", [flip, lambda path, _: path.write_bytes(b"x"), lambda path, _: path.write_bytes(b"")]
)
def test_a_damaged_copy_of_a_good_original_is_fetched_again(tmp_path, damage, new_process, caplog):
    write_blocks(TeacherLogits(store(tmp_path), key()), range(4))
    (copy,) = here(tmp_path)
    whole, times = copy.read_bytes(), copy.stat()
    damage(copy, -1)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk's fault does it
    new_process()
    teacher = TeacherLogits(store(tmp_path), key())
    assert teacher.damaged == []
    assert ("damaged local copy" in caplog.text) == (damage is flip)  # another length is seen without reading
    assert copy.read_bytes() == whole
    assert len(list((tmp_path / "storage").rglob("*.block"))) == 1
    np.testing.assert_array_equal(TeacherRows(teacher, ids([2]), inputs([2]))[0], logits(2))


def test_a_damaged_original_is_quarantined_in_the_storage(tmp_path, caplog):
    (path,) = write_blocks(TeacherLogits(tmp_path / "storage", key()), range(4))
    flip(path, -1)
    teacher = TeacherLogits(store(tmp_path), key())
    assert teacher.missing(ids(range(4)), inputs(range(4))).tolist() == [0, 1, 2, 3]
    assert [str(d.path) for d in teacher.damaged] == [str(path)]
    assert str(path) in caplog.text
    assert path.with_name(f"{path.name}.damaged").exists()
    assert here(tmp_path) == []
    write_blocks(teacher, range(4))
    np.testing.assert_array_equal(read(store(tmp_path, "other"), range(4))[[3]], expected([3], "a"))


def test_a_copy_of_an_original_that_was_written_anew_is_not_used(tmp_path):
    """As if a user deleted a teacher's folder to compute it again, while other nodes have old copies."""
    teacher = TeacherLogits(store(tmp_path), key())
    path = write_blocks(teacher, range(4))[0]
    original = teacher.files.path / path.name
    old = original.stat()
    original.unlink()
    writer = TeacherLogits(store(tmp_path, "other"), key())
    writer.add(ids(range(4)), inputs(range(4), b"another"), [logits(r) for r in range(4)])
    os.utime(original, (old.st_atime, old.st_mtime + 2))
    again = TeacherLogits(store(tmp_path), key())
    assert again.missing(ids(range(4)), inputs(range(4), b"another")).tolist() == []


def open_at_once(where: LogitStore, barrier, answers) -> None:
    seen = []
    real = local.LocalFiles.read
    local.LocalFiles.read = lambda self, name, *a: seen.append(name) or real(self, name, *a)
    barrier.wait(30)
    data = read(where, range(40))
    answers.put((sum(n.endswith(".block") for n in seen), data[range(40)]))


def test_the_processes_of_a_node_fetch_each_block_once(tmp_path):
    write_blocks(TeacherLogits(tmp_path / "storage", key()), range(40), block=2)
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(3), spawn.Queue()
    workers = [spawn.Process(target=open_at_once, args=(store(tmp_path), barrier, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(20)
    assert sum(fetched for fetched, _ in told) == 20
    for _, batch in told:
        np.testing.assert_array_equal(batch, expected(range(40), "a"))


FETCH_FOR_EVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from made_up_logits import *
from raykd.logits import LogitStore
from raykd.logits import local
real = local.LocalFiles.read
def stop(self, name, *a):
    if name.endswith(".block"):
        print("in the middle", flush=True)
        time.sleep(600)
    return real(self, name, *a)
local.LocalFiles.read = stop
TeacherLogits(LogitStore(sys.argv[2], sys.argv[3]), key())
"""


def test_a_killed_fetcher_blocks_no_other_process(tmp_path):
    write_blocks(TeacherLogits(tmp_path / "storage", key()), range(4))
    command = [sys.executable, "-c", FETCH_FOR_EVER, str(Path(__file__).parents[1])]
    command += [str(tmp_path / "storage"), str(tmp_path / "node")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fetcher:
        try:
            assert fetcher.stdout.readline() == "in the middle\n"
        finally:
            fetcher.send_signal(signal.SIGKILL)
    np.testing.assert_array_equal(read(store(tmp_path), range(4))[[1]], expected([1], "a"))


def test_a_fetcher_that_hangs_is_an_error_in_the_end(tmp_path, monkeypatch):
    write_blocks(TeacherLogits(tmp_path / "storage", key()), range(4))
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.2)
    command = [sys.executable, "-c", FETCH_FOR_EVER, str(Path(__file__).parents[1])]
    command += [str(tmp_path / "storage"), str(tmp_path / "node")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fetcher:
        try:
            assert fetcher.stdout.readline() == "in the middle\n"
            with pytest.raises(StoreError, match=r"\.block\.lock: another process still holds it after 0.2 s"):
                TeacherLogits(store(tmp_path), key())
        finally:
            fetcher.send_signal(signal.SIGKILL)


def blocks_of(tmp_path: Path, teacher: str, node: str = "node") -> int:
    return sum(p.parent.name == key(teacher).fingerprint for p in here(tmp_path, node))


def test_the_least_recently_used_make_room(tmp_path):
    for teacher in "abc":  # 4 blocks of 2 kB each
        write_blocks(TeacherLogits(tmp_path / "storage", key(teacher)), range(8), block=2, h=2, c=200)
    size = max(p.stat().st_size for p in (tmp_path / "storage").rglob("*.block"))
    small = store(tmp_path, cache_gb=10 * size / 1e9)
    for teacher in "ab":
        TeacherLogits(small, key(teacher))
        gc.collect()  # nobody has them mapped any more
    for path in here(tmp_path):  # some time has passed; b was there first
        modified = path.stat().st_mtime
        os.utime(path, (time.time() - (200 if path.parent.name == key("b").fingerprint else 100), modified))
    used = TeacherLogits(small, key("c"))
    assert [blocks_of(tmp_path, t) for t in "abc"] == [4, 2, 4]
    del used
    again = TeacherLogits(small, key("b"))  # using is what counts, not fetching: b's are the latest now
    del again
    gc.collect()
    TeacherLogits(small, key("a"))
    assert blocks_of(tmp_path, "b") == 4
    assert len(here(tmp_path)) <= 10


def test_mapped_blocks_are_never_evicted(tmp_path):
    for teacher in "ab":
        write_blocks(TeacherLogits(tmp_path / "storage", key(teacher)), range(8), block=2, h=2, c=200)
    size = max(p.stat().st_size for p in (tmp_path / "storage").rglob("*.block"))
    small = store(tmp_path, cache_gb=6 * size / 1e9)
    first = TeacherLogits(small, key("a"))
    with pytest.raises(StoreError) as caught:
        TeacherLogits(small, key("b"))
    assert blocks_of(tmp_path, "a") == 4
    said = str(caught.value)
    assert said.startswith(f"logits.cache_gb = {small.cache_gb:g}: this process reads logits of at least ")
    assert f"{8 * size / 1e9:.3g} GB" in said
    assert "Set it to 0.2 or more" in said
    assert "\n" not in said
    assert str(tmp_path / "node") in said
    np.testing.assert_array_equal(TeacherRows(first, ids(range(8)), inputs(range(8)))[7], logits(7, h=2, c=200))
    enough = store(tmp_path, cache_gb=8.1 * size / 1e9)  # the mend works
    assert len(TeacherLogits(enough, key("b")).blocks) == 4


def test_eviction_does_not_affect_other_processes(tmp_path):
    for teacher in "ab":
        write_blocks(TeacherLogits(tmp_path / "storage", key(teacher)), range(8), block=2, h=2, c=200)
    size = max(p.stat().st_size for p in (tmp_path / "storage").rglob("*.block"))
    data = read(store(tmp_path, cache_gb=5 * size / 1e9), range(8))
    evict = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from made_up_logits import *
from raykd.logits import LogitStore
TeacherLogits(LogitStore({str(tmp_path / "storage")!r}, {str(tmp_path / "node")!r}, {5 * size / 1e9}), key("b"))
"""
    subprocess.run([sys.executable, "-c", evict], check=True)
    assert [blocks_of(tmp_path, t) for t in "ab"] == [1, 4]
    np.testing.assert_array_equal(data[range(8)], expected(range(8), "a", h=2, c=200))


def open_in_turn(where: LogitStore, teacher: str, barrier, answers) -> None:
    for _ in range(5):
        barrier.wait(30)
        answers.put((teacher, read(where, range(40), teacher)[range(40)]))
        gc.collect()


def test_two_processes_whose_blocks_do_not_fit_together_take_turns(tmp_path):
    """Each removes what the other has just fetched, and neither loses a row."""
    for teacher in "ab":
        write_blocks(TeacherLogits(tmp_path / "storage", key(teacher)), range(40), c=100)
    size = max(p.stat().st_size for p in (tmp_path / "storage").rglob("*.block"))
    small = store(tmp_path, cache_gb=11 * size / 1e9)  # of twice 10
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    readers = [spawn.Process(target=open_in_turn, args=(small, t, barrier, answers)) for t in "ab"]
    for reader in readers:
        reader.start()
    for _ in range(10):
        teacher, batch = answers.get(timeout=60)
        np.testing.assert_array_equal(batch, expected(range(40), teacher, c=100))
    for reader in readers:
        reader.join(20)
    assert [r.exitcode for r in readers] == [0, 0]
    assert len(here(tmp_path)) <= 11


def test_a_full_disk_says_which_settings_help(tmp_path, monkeypatch):
    write_blocks(TeacherLogits(tmp_path / "storage", key()), range(4))

    def full(path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cache, "write_atomically", full)
    with pytest.raises(StoreError, match=r"logits.cache = .*No space left .* Lower logits.cache_gb"):
        TeacherLogits(store(tmp_path), key())


def test_two_storages_do_not_share_copies(tmp_path):
    for name in ("one", "two"):
        teacher = TeacherLogits(LogitStore(str(tmp_path / name), str(tmp_path / "node")), key())
        write_blocks(teacher, range(4), c=3 if name == "one" else 4)
    assert len(here(tmp_path)) == 2
    one = TeacherLogits(LogitStore(str(tmp_path / "one"), str(tmp_path / "node")), key())
    assert TeacherRows(one, ids([1]), inputs([1])).shapes.tolist() == [[2, 3]]


def test_the_default_cache_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _cache(None) == tmp_path / f"raykd-{os.getuid()}" / "logits"
    parent = tmp_path / f"raykd-{os.getuid()}"
    assert stat.S_IMODE(parent.stat().st_mode) == 0o700
    parent.chmod(0o777)
    with pytest.raises(StoreError, match=r"raykd-\d+ is .*open to others"):
        _cache(None)


@pytest.mark.parametrize("target", ["mine", "nothing"])
def test_a_link_in_the_place_of_the_default_cache_is_not_followed(tmp_path, monkeypatch, target):
    """In a shared temporary folder another user may have made it: copies would land in this user's own folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / f"raykd-{os.getuid()}").symlink_to(tmp_path / target)
    with pytest.raises(StoreError, match=r"raykd-\d+ is a link"):
        _cache(None)
    assert list((tmp_path / "mine").iterdir()) == []
    assert not (tmp_path / "nothing").exists()


def test_a_world_writable_cache_gets_a_private_subfolder(tmp_path):
    given = tmp_path / "scratch"
    given.mkdir()
    assert _cache(str(given)) == given
    given.chmod(0o1777)
    own = given / f"raykd-{os.getuid()}"
    assert _cache(str(given)) == own
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.rmdir()
    own.symlink_to(tmp_path)
    with pytest.raises(StoreError, match="is a link"):
        _cache(str(given))


@pytest.mark.parametrize(
    ("values", "key_", "said"),
    [
        (("runs/logits",), "logits.storage", "neither an absolute path nor a URI"),
        (("/x", "cache"), "logits.cache", "not an absolute path"),
        (("/x", "/cache", 0), "logits.cache_gb", "not above 0"),
        (("/x", "/cache", float("nan")), "logits.cache_gb", "not above 0"),
    ],
)
def test_invalid_stores_are_refused(values, key_, said):
    with pytest.raises(ConfigError, match=said) as caught:
        LogitStore(*values)
    assert caught.value.key == key_


def test_a_file_uri_is_its_path(tmp_path):
    paths = write_blocks(TeacherLogits(tmp_path / "a b", key()), range(4))
    uri = f"file://{tmp_path}/a%20b"
    teacher = TeacherLogits(uri, key())
    assert [b.path for b in teacher.blocks.values()] == paths
    write_blocks(teacher, range(6))
    assert TeacherLogits(tmp_path / "a b", key()).missing(ids(range(6)), inputs(range(6))).tolist() == []


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AK:se%2Fcret@bucket/x?region=us", "s3://bucket/x"),
        ("s3://bucket/a@b/c?x=y@z", "s3://bucket/a@b/c"),
        ("s3://AK:se/cret@bucket/x", "s3://bucket/x"),
        ("s3://AK:se?cret@bucket/x", "s3://bucket/x"),
        ("s3://AK:12/cret@bucket/x", "s3://bucket/x"),  # what comes before the / is no port
        ("s3://AK:se@cret@bucket/x", "s3://bucket/x"),
        ("gs://bucket/x/", "gs://bucket/x"),
        ("abfs://host:8020/x?sas=secret", "abfs://host:8020/x"),
        ("/data/x?y@z", "/data/x?y@z"),
    ],
)
def test_messages_show_no_credentials(uri, shown):
    assert object_store.shown(uri) == shown
    assert "cret" not in repr(LogitStore(uri)) + str(LogitStore(uri))


@pytest.mark.parametrize("uri", ["s3://AK:se/cret@bucket/x", "s3://AK:secret@bucket/x?secret=1", "foo://AK:secret@x/y"])
def test_errors_about_a_uri_omit_its_credentials(uri):
    with pytest.raises(ConfigError) as caught:
        TeacherLogits(uri, key())
    assert "pyarrow cannot open it" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__  # nor does the traceback
