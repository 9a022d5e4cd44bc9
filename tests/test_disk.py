"""`raykd store ls | prune` on a store that is built from made-up trainings, rows and logits."""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from datasets import Dataset
from filelock import FileLock
from made_up_logits import key, write_blocks
from peft import LoraConfig, get_peft_model
from rich.console import Console
from tiny import bert, reviews_job
from transformers import AutoConfig, AutoModelForSequenceClassification

from raykd.checks.command import check
from raykd.common.atomic import quarantine, write_atomically
from raykd.common.errors import ConfigError, StoreError
from raykd.common.readers import Reader, reading, reading_model
from raykd.common.row_files import save_rows
from raykd.common.uses import note_uses, read_uses
from raykd.config.load import build, override
from raykd.disk.command import Filter, duration, run_store
from raykd.disk.items import scan
from raykd.disk.leftovers import remove_leftovers
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.prepare import prepare

DAY = 86400
STUDENT, STOPPED, SHARED = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def output(tmp_path) -> Path:
    """Jobs "one" and "two": a student and a stopped training of "one", a teacher and rows of both, and its logits."""
    store = tmp_path / "runs" / "store"
    for fingerprint in (STUDENT, STOPPED, SHARED):
        model = store / "trainings" / fingerprint / "generation-1" / "model"
        model.mkdir(parents=True)
        (store / "trainings" / fingerprint / "lock").touch()
        if fingerprint == STOPPED:
            write_atomically(model.parent / "checkpoint.pt", bytes(3000))
        else:
            write_atomically(model / "config.json", b"{}")
            write_atomically(store / "trainings" / fingerprint / "result.json", b"{}")
    save_rows(Dataset.from_dict({"x": [1, 2]}), store / "data" / "rows-raw")
    teacher = TeacherLogits(store / "logits", key("a"))
    write_blocks(teacher, range(8))
    teacher.note_use("two")
    shared = {f"trainings/{SHARED}": "vit-a", "data/rows-raw": "train"}
    note_uses(store, "one", shared | {f"trainings/{STUDENT}": "student", f"trainings/{STOPPED}": "student seed 2"})
    note_uses(store, "two", shared)
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / ".lock").touch()
    return tmp_path / "runs"


def items(output: Path) -> dict[str, object]:
    return {item.path: item for item in scan(output, LogitStore.at(output / "store" / "logits"))}


def prune(output: Path, *, yes: bool = True, dry_run: bool = False, **chosen: object) -> str:
    console = Console(file=io.StringIO(), width=80, markup=False, soft_wrap=True)
    assert run_store("prune", str(output), Filter(**chosen), console, yes, dry_run) == 0
    return console.file.getvalue()


def left(output: Path) -> set[str]:
    return {path.name for path in (output / "store" / "trainings").iterdir()}


def test_what_is_in_a_store(output):
    found = items(output)
    student, stopped, shared = (found[f"trainings/{name}"] for name in (STUDENT, STOPPED, SHARED))
    assert (student.name, student.jobs, student.state, student.unfinished) == ("student", ("one",), "complete", False)
    assert (stopped.size, stopped.state, stopped.unfinished) == (3000, "unfinished", True)
    assert set(shared.jobs) == {"one", "two"}
    assert found["data/rows-raw"].name == "train"
    logits = found[key("a").fingerprint]
    assert (logits.kind, logits.name, logits.jobs) == ("logits", "Teacher a", ("two",))
    assert logits.size > 0
    assert not any(item.held for item in found.values())


def test_ls_fits_a_terminal_and_names_its_totals(output):
    console = Console(file=io.StringIO(), width=80, markup=False, soft_wrap=True)
    run_store("ls", str(output), Filter(), console)
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines()[1:-1])
    assert "3 trainings" in text
    assert "3 kB" in text


def test_a_command_removes_the_checkpoints_that_nothing_needs(output):
    trainings = output / "store" / "trainings"
    quiet = Console(file=io.StringIO(), width=200)
    half = trainings / SHARED / "generation-1" / "best.safetensors"  # killed after the checkpoint was removed
    half.write_bytes(bytes(500))
    assert remove_leftovers(output, "one", quiet) == 500
    stopped = trainings / STOPPED / "generation-1" / "checkpoint.pt"
    assert stopped.exists(), "it was stopped today, and can be resumed"
    assert (trainings / SHARED / "generation-1" / "model" / "config.json").exists()

    notes = output / "store" / "uses" / "one.jsonl"
    notes.write_text(re.sub(r'"at": "[^"]*"', '"at": "2020-01-01T00:00:00+00:00"', notes.read_text()))
    assert remove_leftovers(output, "one", quiet) == 0, "it was written today"
    os.utime(stopped, (0, time.time() - 8 * DAY))
    assert remove_leftovers(output, "two", quiet) == 0, "another job's"
    with FileLock(trainings / STOPPED / "lock"):
        assert remove_leftovers(output, "one", quiet) == 0, "it is being trained"
    journal = output / "one" / "sweep.jsonl"
    journal.write_text(f'{{"run": "kd 1#{STOPPED}", "id": "0"}}')
    assert remove_leftovers(output, "one", quiet) == 0, "a sweep can be resumed"
    journal.unlink()
    assert remove_leftovers(output, "one", quiet) == 3000
    assert not stopped.exists()
    assert "1 training, finished or given up: 3 kB" in quiet.file.getvalue()
    assert remove_leftovers(output, "one", quiet) == 0


def test_prune_by_job_keeps_what_another_job_uses(output):
    prune(output, jobs=("one",))
    assert left(output) == {SHARED}
    assert (output / "store" / "data" / "rows-raw").exists()


def test_prune_unfinished_removes_stopped_trainings_drafts_and_damaged_files_alone(output):
    trainings = output / "store" / "trainings"
    quarantine(output / "store" / "data" / "rows-raw", "a test")
    draft, fresh = trainings / ".old.tmp", trainings / ".new.tmp"
    for path in (draft, fresh):
        path.mkdir()
    os.utime(draft, (time.time() - 2 * DAY,) * 2)
    (output / "store" / "backups").mkdir()
    os.utime(output / "store" / "backups", (time.time() - 2 * DAY,) * 2)
    prune(output, unfinished=True)
    assert (output / "store" / "backups").exists(), "it is not raykd's"
    assert left(output) == {STUDENT, SHARED, fresh.name}  # the fresh draft may have a writer
    assert list((output / "store" / "data").iterdir()) == []


def test_prune_by_age_counts_from_the_last_use(output):
    folder = output / "store" / "trainings" / STUDENT
    for path in [*folder.rglob("*"), *(output / "store" / "trainings" / STOPPED).rglob("*")]:
        os.utime(path, (time.time() - 40 * DAY,) * 2)
    prune(output, kinds=("trainings",), older_than=30 * DAY)
    assert left(output) == {STUDENT, STOPPED, SHARED}  # noted as used today
    (output / "store" / "uses" / "one.jsonl").unlink()
    prune(output, kinds=("trainings",), older_than=30 * DAY)
    assert left(output) == {SHARED}


def test_a_prune_that_was_killed_stops_no_later_one(output):
    """Between its two steps: the item has another name, and has been trained again since."""
    trainings = output / "store" / "trainings"
    left_over = trainings / f".{STUDENT}.removed.tmp"
    (left_over / "generation-1").mkdir(parents=True)
    prune(output, jobs=("one",))
    assert left(output) == {SHARED, left_over.name}
    for path in (left_over / "generation-1", left_over):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    prune(output, unfinished=True)
    assert left(output) == {SHARED}


@pytest.mark.skipif(os.geteuid() != 0, reason="root lends its files to another user")
def test_a_lock_of_another_user_holds():
    """Whose file cannot be written here."""
    code = "import os, sys; from pathlib import Path; from raykd.common.readers import is_locked\n"
    code += "os.setuid(65534); print(is_locked(Path(sys.argv[1])))"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lock = Path(folder, ".lock")
        lock.touch(0o644)

        def seen() -> str:
            command = [sys.executable, "-c", code, str(lock)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        assert seen() == "False"
        with FileLock(lock):
            assert seen() == "True"


def test_what_cannot_be_removed_stays_and_the_rest_goes(output, monkeypatch):
    rename = Path.rename

    def of_another_user(path: Path, target: Path) -> Path:
        if path.name == STUDENT:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", of_another_user)
    with pytest.raises(StoreError, match="could not remove 1 trainings"):
        prune(output, kinds=("trainings",))
    assert left(output) == {STUDENT}


def test_a_path_that_does_not_exist_is_no_store(output):
    with pytest.raises(ConfigError) as refused:
        run_store("ls", str(output / "typo"), Filter(), Console(file=io.StringIO()))
    assert refused.value.key == "WHERE"
    assert run_store("ls", str(output / "one"), Filter(), Console(file=io.StringIO())) == 0


def test_what_a_running_command_holds_is_kept(output):
    with FileLock(output / "two" / ".lock"):
        text = prune(output, older_than=0.0)
    assert left(output) == {SHARED}  # of "two"; those of "one" alone are removed
    assert (output / "store" / "data" / "rows-raw").exists()
    assert items(output)[key("a").fingerprint].size > 0
    assert "two is running" in text
    prune(output, older_than=0.0)
    assert left(output) == set()


def test_what_a_check_reads_is_kept(output):
    store = output / "store"
    with reading(store, Reader("raykd check two", job="two")), reading(store, Reader("raykd check new", job="new")):
        text = prune(output, older_than=0.0)
        assert left(output) == {SHARED}
        assert (store / "data" / "rows-raw").exists()
    assert "raykd check two is running" in text
    assert list((store / "readers").iterdir()) == []
    prune(output, older_than=0.0)
    assert left(output) == set()


def test_a_check_says_what_it_reads_while_it_runs(tmp_path):
    tree = reviews_job(tmp_path)
    output = Path(tree["output"])
    held = []

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            held.append({item.kind: item.held for item in scan(output, LogitStore.at(output / "store" / "logits"))})
            return super().write(text)

    check(build(tree), Console(file=Screen(), width=200), offline=False)
    assert all(each["data"] == f"raykd check {tree['name']} is running" for each in held)
    assert len(held) > 5
    assert not any(item.held for item in items(output).values())


def test_a_model_that_is_read_is_kept(output, tmp_path):
    model = output / "store" / "trainings" / STUDENT / "generation-1" / "model"
    with reading_model(model, "raykd predict"), reading_model(model, "raykd push"):
        text = prune(output, kinds=("trainings",))
        assert left(output) == {STUDENT}
    assert "raykd pre" in text or "raykd pu" in text
    with reading_model(tmp_path / "elsewhere", "raykd predict"), reading_model(None, "raykd predict"):
        prune(output, kinds=("trainings",))
    assert left(output) == set()


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_that_another_job_starts_from_is_that_jobs_too(tmp_path, adapter):
    """Also one that is only the base of an adapter, which is elsewhere."""
    tree = reviews_job(tmp_path)
    store = Path(tree["output"]) / "store"
    folder = store / "trainings" / STUDENT / "generation-1" / "model"
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**bert()))
    model.save_pretrained(folder)
    if adapter:
        adapted = get_peft_model(model, LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
        adapted.peft_config["default"].base_model_name_or_path = str(folder)
        adapted.save_pretrained(tmp_path / "adapter")
    started = {"pretrained": str(tmp_path / "adapter" if adapter else folder), "tokenizer": str(tmp_path / "tokenizer")}
    prepare(build(override(tree, {"student.model": started})))
    note_uses(store, "maker", {f"trainings/{STUDENT}": "student"})
    assert sorted(items(Path(tree["output"]))[f"trainings/{STUDENT}"].jobs) == ["maker", tree["name"]]
    prune(Path(tree["output"]), jobs=("maker",))
    assert left(Path(tree["output"])) == {STUDENT}


def test_a_killed_reader_holds_nothing(output):
    code = "import os, sys; from pathlib import Path; from raykd.common.readers import *\n"
    code += "with reading(Path(sys.argv[1]), Reader('raykd check two', job='two')): print(flush=True); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(output / "store")], capture_output=True)
    files = list((output / "store" / "readers").iterdir())
    assert len(files) == 2
    for file in files:
        os.utime(file, (time.time() - DAY,) * 2)
    assert not any(item.held for item in items(output).values())
    assert list((output / "store" / "readers").iterdir()) == []


def test_a_store_that_cannot_be_written_can_be_read(output):
    (output / "store" / "readers").write_text("in the way")
    with reading(output / "store", Reader("raykd check two", job="two")):
        assert items(output)


def test_a_training_that_another_process_trains_is_kept(output):
    with FileLock(output / "store" / "trainings" / STOPPED / "lock"):
        prune(output, unfinished=True)
        assert STOPPED in left(output)
    prune(output, unfinished=True)
    assert STOPPED not in left(output)


def test_nothing_is_removed_without_a_choice_a_confirmation_or_in_a_dry_run(output):
    with pytest.raises(ConfigError, match="--kind"):
        prune(output)
    with pytest.raises(ConfigError, match="--yes"):
        prune(output, yes=False, unfinished=True)
    assert "3 kB" in prune(output, dry_run=True, unfinished=True)
    assert left(output) == {STUDENT, STOPPED, SHARED}


def test_a_store_of_an_earlier_version_is_listed_by_its_journals(output):
    for notes in (output / "store" / "uses").iterdir():
        notes.unlink()
    (output / "one" / "sweep.jsonl").write_text(f'{{"run": "kd 1#{STUDENT}", "id": "e1"}}\n')
    student = items(output)[f"trainings/{STUDENT}"]
    assert (student.name, student.jobs) == ("kd 1", ("one",))


def test_notes_of_uses_survive_a_torn_line(tmp_path):
    note_uses(tmp_path, "job", {"data/a": "train"})
    with (tmp_path / "uses" / "job.jsonl").open("a") as file:
        file.write('{"at": "20')
    note_uses(tmp_path, "job", {"data/b": "test"})
    assert {item: [use.by for use in uses] for item, uses in read_uses(tmp_path).items()} == {
        "data/a": ["job"],
        "data/b": ["job"],
    }


@pytest.mark.parametrize(("text", "seconds"), [("30d", 30 * DAY), ("12h", 12 * 3600), ("4w", 28 * DAY), ("0d", 0)])
def test_a_length_of_time(text, seconds):
    assert duration(text) == seconds


def test_what_is_no_length_of_time_is_named():
    with pytest.raises(ConfigError, match="--older-than = 30"):
        duration("30")


@pytest.mark.parametrize("where", ["one", "store", "."])
def test_folders_in_the_output_name_it_too(output, where):
    console = Console(file=io.StringIO(), width=80, markup=False, soft_wrap=True)
    run_store("ls", str(output / where), Filter(), console)
    assert "3 trainings" in console.file.getvalue()
