"""`raykd logits ls | verify | rm`, on folders, on jobs and on a real S3 server."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up_logits import expected, flip, ids, inputs, key, write_blocks
from object_store import ObjectStore, object_store
from rich.console import Console
from tiny import reviews_job

from raykd.common.errors import ConfigError, StoreError
from raykd.common.units import shown_size
from raykd.logits import LogitStore, StoredLogits, TeacherKey, TeacherLogits
from raykd.logits.command import run_logits


@pytest.fixture(scope="module")
def server():
    with object_store() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, server: ObjectStore) -> LogitStore:
    where = str(tmp_path / "logits") if request.param == "folder" else server.new_uri()
    return LogitStore(where, None if request.param == "folder" else str(tmp_path / "node"))


def told(action: str, where: str | Path, *teachers: str, yes: bool = False) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=160, markup=False, soft_wrap=True)
    code = run_logits(action, str(where), teachers, console, yes)
    return code, console.file.getvalue()


def cells(text: str) -> dict[str, list[str]]:
    """The table's lines by their first cell."""
    lines = [[c.strip() for c in line.strip("│┃").split("│")] for line in text.splitlines() if line.startswith("│")]
    return {first: rest for first, *rest in lines}


def damage(store: LogitStore, teacher: TeacherLogits, name: str) -> None:
    data = bytearray(teacher.files.read(name))
    data[-1] ^= 1
    teacher.files.write(name, bytes(data))


def test_ls_lists_all_teachers(store):
    a, b = (TeacherLogits(store, key(t, dtype=d)) for t, d in (("a", "float32"), ("b", "bfloat16")))
    write_blocks(a, range(1500), block=1000, h=1, c=2)
    write_blocks(b, range(5), block=2)
    a.note_use("first")
    a.note_use("second one")
    noted = json.loads(store.files(f"{a.key.fingerprint}/uses").read("first.json"))
    assert noted["by"] == "first"
    noted["at"] = "2020-02-03T04:05:06+00:00"
    a.files.write("uses/first.json", json.dumps(noted).encode())
    code, text = told("ls", store.storage)
    assert code == 0
    assert str(store) in text
    found = cells(text)
    size = sum(a.files.stamp(n)[0] for n in a.blocks)
    assert found["Teacher a"][:6] == [
        a.key.fingerprint[:12],
        "float32",
        "1,500",
        "2",
        shown_size(size),
        "second one, first",
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d", found["Teacher a"][6])
    assert found["Teacher a"][6] > "2026"
    assert found["Teacher b"][1:4] == ["bfloat16", "5", "3"]
    assert found["Teacher b"][5:] == ["", ""]
    assert found["2 in all"][2:4] == ["1,505", "5"]
    assert cells(told("ls", store.storage, "Teacher b")[1]).keys() == {"Teacher b", "1 in all"}


def test_verify_finds_damage_and_the_next_run_computes_it_again(store, tmp_path):
    a, b = (TeacherLogits(store, key(t)) for t in "ab")
    write_blocks(a, range(12))
    write_blocks(b, range(4))
    code, text = told("verify", store.storage)
    assert code == 0
    assert f"Teacher a {a.key.fingerprint[:12]}: 3 blocks" in text
    assert text.count(": whole") == 2
    name = sorted(a.blocks)[1]
    damage(store, a, name)
    assert told("verify", store.storage, "Teacher b")[0] == 0  # only the one that is named
    code, text = told("verify", store.storage)
    assert code == 1
    assert f"{a.files.where}/{name}: its bytes do not match its checksum; quarantined" in text
    assert "1 damaged, computed again by the next run" in text
    assert cells(told("ls", store.storage)[1])["Teacher a"][3] == "2 (+1 damaged)"
    assert told("verify", store.storage)[0] == 0
    again = LogitStore(store.storage, str(tmp_path / "other node") if store.cache else None)
    teacher = TeacherLogits(again, key())
    assert len(write_blocks(teacher, range(12))) == 1
    got = StoredLogits([teacher], ids(range(12)), [inputs(range(12))])[range(12)]
    assert (got == expected(range(12), "a")).all()


def test_verify_reads_the_original_and_not_a_copy(tmp_path):
    (path,) = write_blocks(TeacherLogits(tmp_path, key()), range(4))
    TeacherLogits(tmp_path, key())  # this process has seen its checksum
    times = path.stat()
    flip(path, -1)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert told("verify", tmp_path)[0] == 1


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("{", "cannot be read"),
        (json.dumps({"format": 9, "key": key().parts}), "has format 9 instead of 1"),
        (json.dumps({"format": 1, "key": key("b").parts}), "has the key of another folder"),
    ],
)
def test_ls_reports_a_manifest_that_does_not_match(store, manifest, said):
    teacher = TeacherLogits(store, key())
    write_blocks(teacher, range(4))
    teacher.files.write("manifest.json", manifest.encode())
    code, text = told("verify", store.storage)
    assert (code, "manifest: " in text) == (1, True)
    assert said in text
    assert "(manifest!)" in told("ls", store.storage)[1]
    assert told("rm", store.storage, key().fingerprint[:8], yes=True)[0] == 0


def test_a_folder_without_manifest_can_be_looked_after(store):
    teacher = TeacherLogits(store, key())
    (path,) = write_blocks(teacher, range(4))
    other = LogitStore(store.storage + "x") if "://" not in store.storage else None
    if other:
        files = other.files(key().fingerprint)
        files.write(path.name, path.read_bytes())
        assert told("verify", other.storage)[0] == 0
        assert cells(told("ls", other.storage)[1])["?"][2:4] == ["4", "1"]


def test_rm_removes_the_named_teacher(store):
    kept, gone = TeacherLogits(store, key("a")), TeacherLogits(store, key("b"))
    for teacher in (kept, gone):
        write_blocks(teacher, range(8))
        teacher.note_use("someone")
    code, text = told("rm", store.storage, gone.key.fingerprint[:6], yes=True)
    assert code == 0
    assert f"to be removed from {store}" in text
    assert cells(text)["Teacher b"][5] == "someone"
    assert f"removed Teacher b {gone.key.fingerprint[:12]}" in text
    assert store.files().teachers() == [kept.key.fingerprint]
    assert len(TeacherLogits(store, key("b")).missing(ids(range(8)), inputs(range(8)))) == 8
    assert len(TeacherLogits(store, key("a")).missing(ids(range(8)), inputs(range(8)))) == 0


@pytest.mark.parametrize("answer", ["n\n", "\n", "y\n", "\x04"])  # the last is Ctrl-D
def test_rm_asks_on_a_terminal(tmp_path, answer):
    write_blocks(TeacherLogits(tmp_path, key()), range(4))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "raykd", "logits", "rm", str(tmp_path), "Teacher a"]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.write(ours, answer.encode())
    text = process.communicate(timeout=60)[0]
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, text
    assert "remove? [y/N]" in text
    assert (tmp_path / key().fingerprint).exists() == (answer != "y\n")
    assert ("nothing was removed" in text) == (answer != "y\n")


def test_ambiguous_names_are_refused(tmp_path):
    for name in ("a", "b"):
        write_blocks(TeacherLogits(tmp_path, key(name)), range(2))
    twin = TeacherKey("c", "p", "s", "float32", metadata={"name": "Teacher a"})
    write_blocks(TeacherLogits(tmp_path, twin), range(2))
    with pytest.raises(ConfigError, match=r"TEACHER = Teacher B: .*no such teacher\. Did you mean Teacher b"):
        told("rm", tmp_path, "Teacher B", yes=True)
    with pytest.raises(ConfigError, match="2 teachers have this name: .*" + twin.fingerprint[:12]):
        told("rm", tmp_path, "Teacher a", yes=True)
    with pytest.raises(ConfigError, match="needs at least 6 characters"):
        told("rm", tmp_path, twin.fingerprint[:5], yes=True)
    assert len(LogitStore.at(tmp_path).files().teachers()) == 3
    told("rm", tmp_path, twin.fingerprint[:6], key("b").fingerprint, yes=True)
    assert LogitStore.at(tmp_path).files().teachers() == [key("a").fingerprint]


def test_other_folders_and_files_are_no_teachers(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "x").write_text("x")
    assert told("ls", tmp_path) == (0, f"no logits in {tmp_path} (a job's are in OUTPUT/store/logits)\n")


def test_a_read_only_store_takes_no_note(tmp_path, caplog):
    teacher = TeacherLogits(tmp_path, key())
    write_blocks(teacher, range(4))
    (tmp_path / key().fingerprint / "uses").write_text("in the way")
    teacher.note_use("me")
    assert "cannot note in" in caplog.text
    assert "that me uses it" in caplog.text


@pytest.mark.parametrize("by", ["../../escape", "ä b", ".hidden", "x" * 300])
def test_any_experiment_can_be_noted_and_none_leaves_its_folder(tmp_path, by):
    teacher = TeacherLogits(tmp_path / "store", key())
    write_blocks(teacher, range(2))
    teacher.note_use(by)
    teacher.note_use(by)
    (note,) = (tmp_path / "store" / key().fingerprint / "uses").iterdir()
    assert json.loads(note.read_text())["by"] == by
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert told("ls", tmp_path / "store")[0] == 0


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    code = (
        "import sys; from raykd.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'ray', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "logits", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )


def test_the_command_on_a_job(tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(reviews_job(tmp_path)))
    done = command("ls", config)
    assert (done.returncode, "no logits in" in done.stdout) == (0, True), done.stderr
    paths = write_blocks(TeacherLogits(tmp_path / "runs" / "store" / "logits", key()), range(8))
    done = command("ls", config)
    assert done.returncode == 0, done.stderr
    assert "Teacher a" in done.stdout
    flip(paths[0], -1)
    done = command("verify", config)
    assert done.returncode == 1, done.stderr
    assert str(paths[0]) in done.stdout
    done = command("rm", config, "Teacher a")
    assert done.returncode == 2
    assert done.stderr == "raykd: --yes = not given: there is no terminal to ask for confirmation. Pass --yes\n"
    assert command("rm", "--yes", config, "Teacher a").returncode == 0
    assert not paths[0].parent.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "/nowhere/at/all"], "WHERE = /nowhere/at/all: there is no such file or folder"),
        (["ls", "foo://user:secret@x/y"], "logits.storage = foo://x/y: pyarrow cannot open it"),
        (["ls", __file__], "CONFIG"),
    ],
)
def test_bad_input_is_one_line(arguments, said):
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_a_server_that_is_not_there_is_one_line():
    uri = "s3://KEYID:topsecret@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    done = command("ls", uri)
    assert done.returncode == 2
    assert done.stderr.startswith("raykd: logits.storage = s3://bucket/x: ")
    assert done.stderr.count("\n") == 1
    assert not re.search("KEYID|topsecret", done.stderr)


def test_errors_of_the_system_are_one_line(tmp_path):
    (tmp_path / key().fingerprint / "manifest.json").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"Is a directory .*manifest\.json"):
        told("ls", tmp_path)


@pytest.mark.parametrize(("size", "said"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_sizes_are_for_people(size, said):
    assert shown_size(size) == said
