"""What a training leaves on disk: whole or not at all, recognised when it is damaged, found where the store is now."""

import dataclasses
import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import electra, reviews_job

from raykd.cluster.flags import Flag
from raykd.cluster.resources import Resources
from raykd.common import shared_files
from raykd.common.atomic import new_file
from raykd.common.errors import DiskFullError, TrainingError, disk_is_full
from raykd.common.ranks import DistContext
from raykd.config.load import build, override
from raykd.config.schema import RayConfig
from raykd.plan.job import Job
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.training.access import Training
from raykd.training.checkpoint import load_best, load_checkpoint, save_best, save_checkpoint
from raykd.training.events import AlreadyTrained, Done, Evaluated, Resumed, Started, Warned
from raykd.training.loop import train
from raykd.training.processes import run_training


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """A training of four steps without teachers or dropout, scored every two."""
    tree = reviews_job(tmp_path_factory.mktemp("trained"))
    tree["student"]["model"] = {**tree["student"]["model"], "config": electra(dropout=0.0)}
    config = build(override(tree, {"training.steps": 4, "training.eval_every": 2}))
    return student_jobs(config, prepare(config), FINETUNE, ())[0]


@pytest.fixture(scope="module")
def trained(job) -> tuple[Path, dict[str, torch.Tensor]]:
    """A copy of what the training leaves, and its weights."""
    list(train(job))
    weights = load_file(job.folder / "generation-1" / "model" / "model.safetensors")
    return Path(shutil.move(job.folder, job.folder.with_name("kept"))), weights


@pytest.fixture(autouse=True)
def _clean(job):
    yield
    shutil.rmtree(job.folder, ignore_errors=True)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, at: float = 0.5) -> None:
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * at)] ^= 1
    path.write_bytes(whole)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.safetensors"])
@pytest.mark.parametrize("damage", [truncate, flip, emptied, Path.unlink])
def test_a_damaged_checkpoint_is_quarantined_and_the_training_starts_anew(job, trained, name, damage, caplog):
    """To the same weights. Without its best weights a training does not resume either: they could be lost for good."""
    events = train(job)
    assert next(event for event in events if isinstance(event, Evaluated)).step == 2
    events.close()
    folder = job.folder / "generation-1"
    damage(folder / name)
    kinds = [type(event) for event in train(job)]
    assert Resumed not in kinds
    assert kinds[-1] is Done
    for key, value in load_file(folder / "model" / "model.safetensors").items():
        assert torch.equal(value, trained[1][key]), key
    aside = {path.name.partition(".damaged-")[0] for path in folder.glob("*.damaged-*")}
    gone = damage is Path.unlink
    assert aside == ({"checkpoint.pt"} | {name}) - ({name} if gone else set())
    assert all(str(folder / each) in caplog.text for each in aside)


def test_weights_that_are_damaged_at_the_end_are_not_scored(tmp_path):
    model = torch.nn.Linear(2, 2)
    save_best(tmp_path, model)
    flip(tmp_path / "best.safetensors", at=0.99)  # in a weight
    with pytest.raises(TrainingError, match=r"best\.safetensors.*checksum"):
        load_best(tmp_path, model)


def test_an_older_checkpoint_without_an_id_or_a_checksum_is_resumed(tmp_path):
    from safetensors.torch import save_file

    state = {"model": {}, "optimizer": {}, "step": 3, "best": 0.5, "seen": 7}
    torch.save(state, tmp_path / "checkpoint.pt")
    save_file({"weight": torch.ones(1, 1)}, tmp_path / "best.safetensors")
    found = load_checkpoint(tmp_path)
    assert found == state
    model = torch.nn.Linear(1, 1, bias=False)
    load_best(tmp_path, model)
    assert model.weight.item() == 1


class Meeting:
    """Two workers in threads, with `DistContext`' own operations between them."""

    def __init__(self) -> None:
        self.parts, self.barrier = {}, threading.Barrier(2, timeout=60)

    def ranks(self, rank: int) -> DistContext:
        meeting = self

        class InThread(DistContext):
            def all_gather(self, part, name=""):
                meeting.barrier.wait()
                meeting.parts[self.rank] = part
                meeting.barrier.wait()
                return [meeting.parts[0], meeting.parts[1]]

        return InThread(rank, 2)


def on_two(work, *places: Path) -> list:
    """What each worker's call gives or raises; each sees the shared folder as its node shows it."""
    meeting, found = Meeting(), [None, None]

    def run(rank: int) -> None:
        try:
            found[rank] = work(places[rank], meeting.ranks(rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """A folder as two nodes see it: one is a step ahead of what the network file system shows to the other."""
    monkeypatch.setattr(shared_files, "file_system", lambda path: "nfs4")
    monkeypatch.setattr(shared_files, "SHOWS_SECONDS", 0.3)
    monkeypatch.setattr(shared_files, "_LOOK_SECONDS", 0.01)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    return here, there


def state_at(step: int) -> dict:
    return {"model": {}, "optimizer": {}, "step": step, "best": -float("inf"), "seen": step}


@pytest.mark.parametrize("stale", [True, False])
def test_workers_resume_at_one_step_or_not_at_all(nodes, stale):
    """A node that still shows the last but one checkpoint, or none: each worker would train from its own."""
    here, there = nodes
    if stale:
        save_checkpoint(there, state_at(2))
    save_checkpoint(here, state_at(4))
    for error in on_two(load_checkpoint, here, there):
        assert isinstance(error, TrainingError)
        assert "do not see it: 1" in str(error)
        assert str(here) in str(error) or str(there) in str(error)


def test_a_worker_waits_for_the_checkpoint_that_the_first_one_has(nodes, monkeypatch):
    here, there = nodes
    save_checkpoint(there, state_at(2))
    save_checkpoint(here, state_at(4))
    real = shared_files.time.sleep

    def sleep(seconds: float) -> None:
        shutil.copy(here / "checkpoint.pt", there / "checkpoint.pt")  # now the node shows it
        real(seconds)

    monkeypatch.setattr(shared_files.time, "sleep", sleep)
    assert [state["step"] for state in on_two(load_checkpoint, here, there)] == [4, 4]


def test_a_worker_alone_that_sees_a_checkpoint_does_not_use_it(nodes):
    here, there = nodes
    save_checkpoint(there, state_at(2))  # the first one has set it aside
    assert on_two(load_checkpoint, here, there) == [None, None]


def test_workers_end_with_the_same_best_weights(nodes, monkeypatch):
    here, there = nodes
    models = {here: torch.nn.Linear(2, 2), there: torch.nn.Linear(2, 2)}
    save_best(there, torch.nn.Linear(2, 2))  # of an earlier evaluation
    best = torch.nn.Linear(2, 2)
    save_best(here, best)
    errors = on_two(lambda folder, ranks: load_best(folder, models[folder], ranks), here, there)
    assert [type(error) for error in errors] == [TrainingError] * 2
    real = shared_files.time.sleep

    def sleep(seconds: float) -> None:
        shutil.copy(here / "best.safetensors", there / "best.safetensors")
        real(seconds)

    monkeypatch.setattr(shared_files.time, "sleep", sleep)
    assert on_two(lambda folder, ranks: load_best(folder, models[folder], ranks), here, there) == [None, None]
    assert all(torch.equal(model.weight, best.weight) for model in models.values())


# Results ------------------------------------------------------------------------------------------


def ended(job: Job, trained: tuple[Path, dict]) -> Path:
    shutil.copytree(trained[0], job.folder)
    assert job.done
    assert not job.damage()
    return job.folder


def without_proof(folder: Path) -> None:
    """As an older raykd has written it."""
    result = json.loads((folder / "result.json").read_text())
    del result["files"]
    result["model"] = "/nowhere/else/trainings/x/generation-1/model"
    (folder / "result.json").write_text(json.dumps(result))


PARTS = ["result.json", "predictions-test.jsonl.gz", "scores.npz", "generation-1/model/model.safetensors"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", [*PARTS, "generation-1/model/config.json"])
def test_a_truncated_result_is_trained_again(job, trained, name, old, caplog):
    folder = ended(job, trained)
    if old:
        without_proof(folder)
        assert not job.damage()
    truncate(folder / name)
    assert Path(name).name in job.damage()
    settings, stop = RayConfig(), Flag(job.store, "stop")
    events = list(run_training(Training(job, Resources(1, 1, 0)), settings, stop))
    kinds = [type(event) for event in events]
    (said,) = [event.text for event in events if isinstance(event, Warned)]
    assert str(folder / "result.json") in said, "for whoever reads the driver's output"
    assert AlreadyTrained not in kinds
    assert kinds[-1] is Done
    assert job.done
    assert not job.damage()
    assert len(list(folder.glob("result.json.damaged-*"))) == 1
    assert str(folder / "result.json") in caplog.text
    again = [type(event) for event in run_training(Training(job, Resources(1, 1, 0)), settings, stop)]
    assert again == [Started, AlreadyTrained]


@pytest.mark.parametrize("name", PARTS[1:])
def test_a_flipped_bit_is_found(job, trained, name):
    folder = ended(job, trained)
    flip(folder / name)
    assert "checksum" in job.damage()
    assert job.done, "which looks at names and sizes alone"


def test_a_result_that_is_no_result(job, trained):
    (ended(job, trained) / "result.json").write_text("[]")
    assert not job.done
    assert "result.json" in job.damage()


def test_a_result_whose_models_were_dropped_is_not_damaged(job, trained):
    ended(job, trained)
    job.delete_models()
    assert not job.damage()
    assert not job.done, "its model is to be kept"
    assert dataclasses.replace(job, keep_model=False).done


@pytest.mark.parametrize("old", [False, True])
def test_a_store_that_was_moved_is_read_where_it_is(job, trained, tmp_path, old):
    """Also where the old place is still there, or the result is of an older raykd, which wrote the whole path."""
    folder = ended(job, trained)
    if old:
        without_proof(folder)
    shutil.copytree(job.store, tmp_path / "moved here" / "store")
    moved = dataclasses.replace(job, store=tmp_path / "moved here" / "store")
    assert moved.done
    assert Path(moved.result()["model"]) == moved.folder / "generation-1" / "model"
    assert Path(moved.result()["model"]).is_dir()


def test_nothing_in_a_store_is_absolute(tmp_path):
    """No file says where the store, the data or a model was, so that it can be moved or mounted elsewhere."""
    tree = override(reviews_job(tmp_path), {"training.steps": 2, "training.eval_every": 1})
    first = student_jobs(config := build(tree), prepare(config), FINETUNE, ())[0]
    list(train(first))
    given = shutil.copytree(first.result()["model"], tmp_path / "given")
    tree["student"]["model"] = {"pretrained": str(given)}
    second = student_jobs(config := build(tree), prepare(config), FINETUNE, ())[0]
    events = train(second)
    next(event for event in events if isinstance(event, Evaluated))
    checkpoint = (second.folder / "generation-1" / "checkpoint.pt").read_bytes()
    list(events)
    files = {path: path.read_bytes() for path in config.store.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} >= {".json", ".arrow", ".safetensors", ".md", ".npz"}
    assert "started from: given" in (Path(second.result()["model"]) / "README.md").read_text()
    places = (str(tmp_path).encode(), str(given).encode())
    found = [path.name for path, content in files.items() if any(place in content for place in places)]
    assert found == []
    assert str(tmp_path).encode() not in checkpoint


# Full disks ---------------------------------------------------------------------------------------


class Full:
    """A file on a disk with room for 1,000 bytes."""

    def __init__(self) -> None:
        self.room = 1000

    def write(self, part) -> int:
        self.room -= len(part)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(part)

    def flush(self) -> None:
        pass


def test_a_full_disk_is_named_whatever_library_finds_it(tmp_path):
    with pytest.raises(RuntimeError) as error:  # torch's own text speaks of positions
        torch.save({"a": torch.arange(1000)}, Full())
    assert "space" not in str(error.value)
    assert disk_is_full(error.value)
    assert not disk_is_full(ValueError("x"))
    with pytest.raises(DiskFullError, match=f"{tmp_path / 'x'}: No space left"), new_file(tmp_path / "x"):
        torch.save({"a": torch.arange(1000)}, Full())
    assert list(tmp_path.iterdir()) == []
