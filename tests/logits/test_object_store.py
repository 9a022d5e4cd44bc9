"""The store on a real S3 server: what is written, read, found damaged, and how often the server is asked."""

import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from made_up_logits import expected, ids, inputs, key, logits, write_blocks
from object_store import KEY, SECRET, ObjectStore, object_store

from raykd.common.errors import ConfigError
from raykd.logits import LogitStore, StoredLogits, TeacherLogits
from raykd.logits import object_store as bucket
from raykd.logits.object_store import Unreachable


@pytest.fixture(scope="module")
def server():
    with object_store() as running:
        yield running


@pytest.fixture
def s3(server: ObjectStore, tmp_path) -> LogitStore:
    """An empty store, with a node's cache of its own."""
    store = LogitStore(server.new_uri(), str(tmp_path / "node"))
    server.requests.clear()
    return store


def on_node(store: LogitStore, node: Path) -> LogitStore:
    return LogitStore(store.storage, str(node), store.cache_gb)


def objects(store: LogitStore) -> dict[str, bytes]:
    """By name below the store, read without any of raykd."""
    files, base = pyarrow.fs.FileSystem.from_uri(store.storage)
    found = files.get_file_info(pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True))
    return {i.path.removeprefix(f"{base}/"): files.open_input_file(i.path).read() for i in found if i.is_file}


def put(store: LogitStore, name: str, data: bytes) -> None:
    files, base = pyarrow.fs.FileSystem.from_uri(store.storage)
    with files.open_output_stream(f"{base}/{name}") as file:
        file.write(data)


def read(store: LogitStore, rows, teachers="ab", **options) -> StoredLogits:
    opened = [TeacherLogits(store, key(t)) for t in teachers]
    return StoredLogits(opened, ids(rows), [inputs(rows)] * len(teachers), **options)


def test_it_holds_the_bytes_that_a_folder_would(s3, tmp_path):
    for teacher in "ab":
        write_blocks(TeacherLogits(tmp_path / "local", key(teacher)), range(10))
        write_blocks(TeacherLogits(s3, key(teacher)), range(10))
    local = [p for p in (tmp_path / "local").rglob("*") if p.is_file()]
    assert objects(s3) == {str(p.relative_to(tmp_path / "local")): p.read_bytes() for p in local}
    far = read(on_node(s3, tmp_path / "far"), range(10))
    near = read(LogitStore.at(tmp_path / "local"), range(10))
    for batch in ([3, 1, 9], range(10)):
        assert far[batch].tobytes() == near[batch].tobytes()
        np.testing.assert_array_equal(far[batch], expected(batch, "ab"))
    copies = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in (tmp_path / "far").rglob("*.block")}
    assert copies == {name: data for name, data in objects(s3).items() if name.endswith(".block")}


def test_a_block_is_one_put_and_one_get_a_node(s3, server, tmp_path):
    write_blocks(TeacherLogits(s3, key()), range(12))
    assert (server.count("PUT"), server.count("GET"), server.count("POST", "")) == (3, 0, 0)
    read(s3, range(12), "a")
    assert server.count("GET") == 0  # the writer's node has them
    for _ in range(2):
        read(on_node(s3, tmp_path / "other"), range(12), "a")
    assert (server.count("PUT"), server.count("GET")) == (3, 3)


def open_at_once(store: LogitStore, barrier, answers) -> None:
    barrier.wait(30)
    answers.put(read(store, range(40), "a")[range(40)])


def test_the_processes_of_a_node_fetch_each_block_once(s3, server, tmp_path):
    write_blocks(TeacherLogits(s3, key()), range(40))
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    there = on_node(s3, tmp_path / "other")
    workers = [spawn.Process(target=open_at_once, args=(there, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        np.testing.assert_array_equal(answers.get(timeout=60), expected(range(40), "a"))
    for worker in workers:
        worker.join(20)
    assert server.count("GET") == 10


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut(data: bytes) -> bytes:
    return data[:-1]


def empty(data: bytes) -> bytes:
    return b""


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


@pytest.mark.parametrize("damage", [half, cut, empty, flipped], ids=lambda d: d.__name__)
def test_a_damaged_object_is_quarantined_and_computed_again(s3, tmp_path, damage, caplog):
    write_blocks(TeacherLogits(s3, key()), range(12))
    before = objects(s3)
    name = sorted(n for n in before if n.endswith(".block"))[1]
    put(s3, name, damage(before[name]))
    there = on_node(s3, tmp_path / "other")
    teacher = TeacherLogits(there, key())
    missing = teacher.missing(ids(range(12)), inputs(range(12)))
    assert len(missing) == 4
    assert [str(d.path) for d in teacher.damaged] == [f"{s3}/{name}"]
    assert f"{s3}/{name}" in caplog.text
    after = objects(s3)
    assert name not in after
    assert after[f"{name}.damaged"] == damage(before[name])
    write_blocks(teacher, range(12))
    assert objects(s3)[name] == before[name]
    np.testing.assert_array_equal(
        read(on_node(s3, tmp_path / "third"), range(12), "a")[range(12)], expected(range(12), "a")
    )


def write_at_once(store: LogitStore, barrier, rows) -> None:
    teacher = TeacherLogits(store, key())
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        barrier.wait(30)
        teacher.add(ids(part), inputs(part), [logits(r) for r in part])


@pytest.mark.parametrize("nodes", [("node", "node"), ("one", "two")], ids=["same node", "two nodes"])
def test_two_writers_of_the_same_rows(s3, tmp_path, nodes):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    writers = [
        spawn.Process(target=write_at_once, args=(on_node(s3, tmp_path / node), barrier, range(30))) for node in nodes
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [w.exitcode for w in writers] == [0, 0]
    assert sum(n.endswith(".block") for n in objects(s3)) == 5
    for node in (*nodes, "new"):
        data = read(on_node(s3, tmp_path / node), range(30), "a")
        np.testing.assert_array_equal(data[range(30)], expected(range(30), "a"))


def test_a_waiting_reader_lists_seldom(s3, server, monkeypatch):
    data = read(s3, range(12), "a", partial=True)
    write_blocks(TeacherLogits(s3, key()), range(8))
    server.requests.clear()
    monkeypatch.setattr(bucket, "RELIST_SECONDS", 3600.0)
    for _ in range(100):
        data.refresh()
    assert server.requests == []
    assert data.lacking([0]) == ["Teacher a"]
    monkeypatch.setattr(bucket, "RELIST_SECONDS", 0.0)  # as when the time has passed
    data.refresh()
    assert data.lacking(range(8)) == []
    monkeypatch.setattr(bucket, "RELIST_SECONDS", 3600.0)
    write_blocks(TeacherLogits(s3, key()), range(12))
    data.refresh(always=True)
    assert data.complete
    np.testing.assert_array_equal(data[range(8)], expected(range(8), "a"))
    assert TeacherLogits(s3, key()).missing(ids(range(13)), inputs(range(13))).tolist() == [12]  # always lists


def test_mapped_blocks_stay_when_object_and_copy_are_deleted(s3, tmp_path):
    write_blocks(TeacherLogits(s3, key()), range(8))
    data = read(s3, range(12), "a", partial=True)
    files, base = pyarrow.fs.FileSystem.from_uri(s3.storage)
    files.delete_dir(base)
    for path in (tmp_path / "node").rglob("*.block"):
        path.unlink()
    data.refresh()
    np.testing.assert_array_equal(data[range(8)], expected(range(8), "a"))


def test_the_cache_keeps_its_limit(s3, tmp_path):
    for teacher in "ab":
        write_blocks(TeacherLogits(s3, key(teacher)), range(8), block=2, h=2, c=200)
    size = max(len(d) for d in objects(s3).values())
    small = LogitStore(s3.storage, str(tmp_path / "small"), 5 * size / 1e9)
    for teacher in "aba":
        opened = TeacherLogits(small, key(teacher))
        assert opened.missing(ids(range(8)), inputs(range(8))).tolist() == []
        held = list((tmp_path / "small").rglob("*.block"))
        assert len(held) <= 5
        assert sum(p.parent.name == key(teacher).fingerprint for p in held) == 4
        del opened
        gc.collect()


def test_it_pickles_without_being_opened(s3):
    write_blocks(TeacherLogits(s3, key()), range(4))
    copy = pickle.loads(pickle.dumps(read(s3, range(4), "a")))
    np.testing.assert_array_equal(copy[[2]], expected([2], "a"))


def test_the_default_cache_is_in_the_temporary_folder(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_blocks(TeacherLogits(LogitStore(s3.storage), key()), range(4))
    (copy,) = (tmp_path / f"raykd-{os.getuid()}" / "logits").rglob("*.block")
    assert copy.parent.name == key().fingerprint


def test_a_bucket_that_is_not_there_is_one_line(s3):
    gone = LogitStore(s3.storage.replace("/bucket-", "/nobucket-"), s3.cache)
    teacher = TeacherLogits(gone, key())
    with pytest.raises(Unreachable) as caught:
        write_blocks(teacher, range(4))
    assert str(caught.value).startswith(f"logits.storage = {gone}/{key().fingerprint}: ")
    assert "\n" not in str(caught.value)
    teacher.note_use("me")  # a warning only


def test_errors_and_logs_hold_no_credentials(s3, tmp_path, caplog):
    quoted = SECRET.replace("+", "%2B")
    inside = s3.storage.replace("s3://", f"s3://{KEY}:{quoted}@")
    good = LogitStore(inside, s3.cache)
    write_blocks(TeacherLogits(good, key()), range(4))  # a URI may hold them
    name = next(n for n in objects(s3) if n.endswith(".block"))
    put(s3, name, b"damaged")
    said = [repr(good), str(good), str(TeacherLogits(on_node(good, tmp_path / "b"), key()).damaged)]
    gone = LogitStore(inside.replace("@bucket-", "@nobucket-"), s3.cache)
    teacher = TeacherLogits(gone, key())
    teacher.note_use("me")
    with pytest.raises(Unreachable) as unreachable:
        write_blocks(teacher, range(4))
    with pytest.raises(ConfigError) as refused:
        TeacherLogits(LogitStore(inside.replace("region", "legion"), s3.cache), key())
    logged = "".join(r.getMessage() for r in caplog.records if r.name.startswith("raykd"))
    assert "damaged block quarantined" in logged
    assert "cannot note" in logged
    said += [str(unreachable.value), str(refused.value), logged]
    for text in said:
        for secret in (KEY, SECRET, quoted, "127.0.0.1"):
            assert secret not in text


def test_google_storage_that_is_not_there_is_one_line(tmp_path):
    """The only test of gs://: pyarrow opens it, and its errors are reported like those of S3."""
    uri = "gs://anonymous@bucket/x?retry_limit_seconds=1&scheme=http&endpoint_override=127.0.0.1%3A9"
    with pytest.raises(Unreachable, match=r"^logits.storage = gs://bucket/x/[0-9a-f]{32}: .*Could not connect"):
        TeacherLogits(LogitStore(uri, str(tmp_path)), key())
