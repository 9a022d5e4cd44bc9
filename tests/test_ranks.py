"""Two workers of one training, of which one fails, waits or sees something else than the other."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from taught import curve, student, teach
from two_ranks import TwoRanks

from raykd.common import ranks
from raykd.common.errors import TrainingError, UserError
from raykd.common.ranks import MISSING, WAITING, CollectiveError, DistContext, local_device
from raykd.common.row_files import save_rows
from raykd.config.methods import Method
from raykd.data.encoding import Encoded
from raykd.logits import LogitStore
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.plan.job import Job, ScoredSplit
from raykd.tasks import make_task
from raykd.training import loader
from raykd.training.access import TeacherAccess
from raykd.training.agreement import AGREEMENT_SIZE
from raykd.training.checkpoint import Stopwatch
from raykd.training.evaluation import predict_split
from raykd.training.loop import train
from raykd.training.setup import Setup

KD = Method(type="kd", alpha=0.5, temperature=2.0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[TwoRanks]:
    ranks = TwoRanks(tmp_path_factory.mktemp("groups"))
    yield ranks
    ranks.close()


def test_two_workers_share_the_steps(both, taught):
    """And their curve is one worker's."""
    job = student(taught, KD, seed=1)
    alone = curve(train(job))
    shutil.rmtree(job.folder)
    found = both(_trained, job)
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], alone, rtol=1e-4, atol=1e-6)


def _trained(ranks: DistContext, job: Job) -> list:
    return curve(train(job, ranks))


def test_logit_of_one_worker_that_is_not_finite_ends_both(both, taught, tmp_path):
    job = student(taught, KD, seed=2)
    rows = job.validation.encoded.open()
    words = [set(row["input_ids"]) for row in rows]
    mine = next(i for i in range(1, len(rows)) if words[i] - words[0])
    word = min(words[mine] - words[0])  # only in the row of the second worker
    save_rows(rows.select([0, mine]), tmp_path / "two")
    job = dataclasses.replace(job, validation=ScoredSplit(Encoded(tmp_path / "two", "two"), job.validation.raw))
    first, second = both.errors(_predicted, job, word)
    assert first == second
    assert first[0] == "DivergedError"
    assert job.name in first[1]
    assert "learning_rate" in first[1]


def _predicted(ranks: DistContext, job: Job, word: int) -> None:
    task = make_task(job.task, job.label_names)
    opened = open_model(job.model, task, "student.model")
    model = load_model(opened, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = float("inf")  # type: ignore[operator]
    rows = job.train[0].open()
    setup = Setup(job, task, opened.processor, rows, "float32", ranks, lambda: False, TeacherAccess(), Stopwatch())
    predict_split(setup, "validation", model)


def test_error_of_one_worker_before_a_step_ends_both(both, taught):
    """As when a live teacher does not answer one of them; no step is taken, and no checkpoint says so."""
    job = student(taught, KD, seed=3)
    errors = both.errors(_fails_alone, job)
    assert errors == [("TrainingError", "teacher a: no answer")] * 2


def _fails_alone(ranks: DistContext, job: Job) -> None:
    looks = iter([False, False])

    def stop() -> bool:
        if (asked := next(looks, None)) is None and ranks.rank == 1:
            raise TrainingError("teacher a: no answer")
        return bool(asked)

    list(train(job, ranks, stop))


def test_folder_that_one_worker_cannot_write_to_ends_both(both, taught):
    """The first worker alone writes the best weights."""
    job = student(taught, KD, seed=4)
    (job.folder / "generation-1" / "best.safetensors" / "in the way").mkdir(parents=True)
    first, second = both.errors(_trained, job)
    assert first == second


def test_worker_that_waits_for_logits_is_not_taken_for_one_that_hangs(both, taught, tmp_path):
    """The second worker's block comes late; the first one hears from it, and both get the same numbers."""
    job = student(taught, KD, seed=5)
    alone = curve(train(job))
    shutil.rmtree(job.folder)
    hidden = tmp_path / "logits"
    assert isinstance(job.logits, LogitStore)
    shutil.copytree(taught[0].store / "logits", hidden)
    found = both(_waits, job, hidden)
    assert found[0][1] == 0, "it had its rows"
    assert found[1][1] > 3, "it has told so"
    np.testing.assert_allclose(found[0][0], alone, rtol=1e-4, atol=1e-6)


def _waits(ranks: DistContext, job: Job, logits: Path) -> tuple[list, int]:
    loader._BEAT_SECONDS = 0.0
    beats = [0]
    blocks = {path: path.with_suffix(".late") for path in logits.rglob("*.block")}
    plain = DistContext.still_waiting

    def counted(self: DistContext, size: int, name: str) -> torch.Tensor:
        beats[0] += 1
        return plain(self, size, name)

    DistContext.still_waiting = counted  # type: ignore[method-assign]
    if ranks.rank == 1:
        for path, late in blocks.items():
            path.rename(late)
        job = dataclasses.replace(job, logits=LogitStore.at(logits))

    def filling() -> bool:
        if beats[0] > 3:
            for path, late in blocks.items():
                if late.exists():
                    late.rename(path)
        return True

    try:
        return curve(train(job, ranks, access=TeacherAccess(precompute_running=filling))), beats[0]  # type: ignore[arg-type]
    finally:
        DistContext.still_waiting = plain  # type: ignore[method-assign]


def test_worker_that_waits_learns_that_the_other_lacks_rows(both):
    first, second = both(_lacks)
    assert first == second == 1


def _lacks(ranks: DistContext) -> float:
    counts = torch.zeros(AGREEMENT_SIZE, dtype=torch.float64)
    counts[MISSING] = ranks.rank == 0
    if ranks.rank == 1:
        totals = [ranks.still_waiting(AGREEMENT_SIZE, "logits") for _ in range(3)]
        assert all(total[MISSING] == 1 and total[WAITING] == 1 for total in totals)
    return float(ranks.agree(counts, "counts")[MISSING])


def test_collective_error_names_the_operation(both):
    (kind, text), other = both.errors(_absent, timeout=1)
    assert kind == "CollectiveError"
    assert "worker 0 of 2: the counts of step 7" in text
    assert "ray.collective_timeout_s" in text
    assert other == ("ValueError", "gone")


def _absent(ranks: DistContext) -> None:
    if ranks.rank == 1:
        raise ValueError("gone")
    ranks.agree(torch.zeros(AGREEMENT_SIZE), "the counts of step 7")


def test_a_group_that_is_taken_away_is_no_diverged_training():
    """Ray Train ends the group of a worker that it restarts: the training must be tried again, not given up."""
    with pytest.raises(CollectiveError, match="worker 0 of 2: the predictions on validation"):
        DistContext(rank=0, world=2).all_gather(1, "the predictions on validation")
    assert not issubclass(CollectiveError, UserError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_gpu_that_torch_cannot_use_is_an_error(monkeypatch):
    """With one of Ray's logical GPUs, everything computes on the CPU; with a real one it would do so unnoticed."""
    monkeypatch.setattr(ranks, "has_gpu_driver", lambda: False)
    assert local_device(1).type == "cpu"
    monkeypatch.setattr(ranks, "has_gpu_driver", lambda: True)
    assert local_device(0).type == "cpu"
    with pytest.raises(TrainingError, match="num_gpus=0"):
        local_device(0.5)
