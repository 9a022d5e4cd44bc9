"""Teachers through torch.compile: what they compute, and when `logits.compile: auto` does so."""

import dataclasses
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from odd_teacher import config_of, make
from tiny import capitals_job, electra, save_tokenizer
from torch._inductor.runtime.runtime_utils import default_cache_dir

from raykd.common.errors import TrainingError
from raykd.config.load import build, override
from raykd.config.schema import ModelConfig
from raykd.logits import LogitStore, TeacherLogits
from raykd.logits.keep import Keep
from raykd.models.inputs import input_columns
from raykd.models.prediction import Inference, same_outputs
from raykd.models.torch_compile import BACKEND, check_cache
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, teacher_jobs
from raykd.tasks import Batch
from raykd.teachers import compiling
from raykd.teachers.actor import TeacherActor
from raykd.teachers.blocks import TeacherWork, missing_blocks
from raykd.teachers.compiling import LONG, MANY, PAIRS, SECONDS, Compiling
from raykd.teachers.serving import ServedTeacher, TeacherModel
from raykd.training.loop import train

ROWS = 1000  # of a block
TOKENS = 8000


class Machine:
    """A replica whose blocks take a given time, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, setting: Any = "auto") -> None:
        self.now, self.seconds, self.agree = 0.0, {True: 100.0, False: 100.0}, True
        monkeypatch.setattr(compiling, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(compiling, "compiled_for_all_shapes", lambda model: ("compiled", model))
        self.compiling = Compiling(setting)

    def block(self, left: int = 10**9, extra: float = 0.0, error: Exception | None = None, share: float = 1.0) -> bool:
        """Compute a block; returns whether it was compiled. share: of the tokens of other blocks."""

        def compute() -> bool:
            compiled = self.compiling.called(["model"]) == [("compiled", "model")]
            self.now += share * self.seconds[compiled] + extra
            if error and compiled:
                raise error
            return compiled

        return self.compiling.block(compute, lambda: self.agree, ROWS, share * TOKENS, left)


def test_it_is_tried_in_turns_once_a_replica_has_long_to_work(monkeypatch):
    """Blocks of 100 s: 18 of them are LONG, so MANY decides. The first plain block does not count."""
    machine = Machine(monkeypatch)
    machine.seconds[True] = 80.0
    left = MANY * ROWS
    assert not machine.block(left=10**9, extra=10**6), "the first one also allocates, and says nothing of the others"
    assert not machine.block(left=10**9), "nothing is known yet"
    assert not machine.block(left=left - 1)
    assert machine.block(left=left, extra=45.0), "it compiles"
    assert machine.compiling.extra_seconds == pytest.approx(25.0), "beyond a plain block"
    # Lengths differ from block to block, which says nothing about compiling.
    turns = [machine.block(left=left - number, share=1.0 + number % 3) for number in range(2 * PAIRS)]
    assert turns == [True, False] * PAIRS
    said = "torch.compile: a block takes 0.80 of its time compiled (compiling took 25 s); used (logits.compile: auto)"
    assert machine.compiling.note == said
    assert [machine.block(left=0) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("seconds", [98.0, 100.0, 150.0])
def test_compiled_blocks_that_gain_nothing_are_not_used(monkeypatch, seconds):
    machine = Machine(monkeypatch)
    machine.seconds[True] = seconds
    turns = [machine.block() for _ in range(3 + 2 * PAIRS)]
    assert turns == [False, False, True, *[True, False] * PAIRS]
    assert not any(machine.block() for _ in range(5))
    assert "not used" in machine.compiling.note


def test_a_gain_that_is_not_clear_is_none(monkeypatch):
    """Two of five compiled blocks take a little more time than the plain ones after them."""
    machine = Machine(monkeypatch)
    assert [machine.block() for _ in range(3)] == [False, False, True]
    for seconds in (101.0, 30.0, 101.0, 30.0, 30.0):
        machine.seconds[True] = seconds
        assert [machine.block(), machine.block()] == [True, False]
    assert "takes 0.30 of its time" in machine.compiling.note
    assert "not used" in machine.compiling.note


def test_short_work_and_short_blocks(monkeypatch):
    """At an eighth of a second for a block, more blocks are compared; and LONG is a matter of seconds, not of rows."""
    machine = Machine(monkeypatch)
    machine.seconds = {True: 1 / 16, False: 1 / 8}
    enough = int(LONG * 8) * ROWS
    assert not any(machine.block(left=int(0.99 * enough)) for _ in range(5))
    assert machine.block(left=int(1.01 * enough))
    turns = 0
    while not machine.compiling.note:
        machine.block(left=1)
        turns += 1
    assert turns == 2 * SECONDS * 16 - 1, "in turns until each has its seconds, and the faster ones go first"
    assert machine.block(left=0), "once it is decided"


@pytest.mark.parametrize("after", ["at once", "in the trial", "settled"])
def test_what_cannot_be_compiled_is_computed_as_it_is(monkeypatch, after):
    """Also a shape that comes late, for which torch compiles again."""
    machine = Machine(monkeypatch)
    machine.seconds[True] = 50.0
    machine.block(), machine.block()
    if after != "at once":
        assert machine.block()
    if after == "settled":
        while not machine.compiling.note:
            machine.block()
        assert machine.block()
    assert not machine.block(error=RuntimeError("no compiler"), extra=7.0), "the same block, plain"
    assert "failed (RuntimeError: no compiler); not used" in machine.compiling.note
    assert not machine.block()


def test_compiled_models_that_compute_something_else_are_not_used(monkeypatch):
    machine = Machine(monkeypatch)
    machine.agree = False
    assert not any(machine.block() for _ in range(6))
    assert "failed (the logits differ); not used" in machine.compiling.note


@pytest.mark.parametrize("setting", [True, False])
def test_a_setting_is_no_question(monkeypatch, setting):
    machine = Machine(monkeypatch, setting)
    machine.agree = False
    assert [machine.block() for _ in range(12)] == [setting] * 12
    assert machine.compiling.note == ""
    machine.compiling.on_out_of_memory()  # the batch is halved, as without a trial
    if setting:
        with pytest.raises(RuntimeError):
            machine.block(error=RuntimeError("no compiler"))


def test_a_lost_replica_ends_all_trials(monkeypatch):
    """One with 0 rows left: see `ReplicaGroup.assign_blocks`."""
    machine = Machine(monkeypatch)
    machine.seconds[True] = 50.0
    assert [machine.block() for _ in range(4)] == [False, False, True, True]
    assert not machine.block(left=0)
    assert "stopped, as a replica was lost; not used" in machine.compiling.note
    assert not any(machine.block() for _ in range(3))


def test_an_empty_block(monkeypatch):
    assert Machine(monkeypatch).compiling.block(list, lambda: True, 0, 0.0, 10**9) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    return make(tmp_path_factory.mktemp("compiled"))


def all_logits(
    served: ServedTeacher, made: SimpleNamespace, store: LogitStore, size: int = 8
) -> tuple[TeacherModel, list[np.ndarray]]:
    work = TeacherWork(config_of(made).teachers[0], served, made.splits)
    blocks = missing_blocks(work, TeacherLogits(store, served.key), size)
    model = TeacherModel(served)
    left = 10**9
    return model, [row for b in blocks for row in model.logits(b.folders, b.positions, b.folds, left)]


@pytest.mark.parametrize(
    ("setting", "classes"),
    [
        ("auto", (1, 0)),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [("auto", ()), (True, ()), (True, (1, 0))]),
    ],
)
def test_compiled_logits_are_the_plain_ones_to_rounding(made, tmp_path, monkeypatch, setting, classes):
    """Also with the hook that sorts classes. The backend captures the forward pass but compiles no C++."""
    monkeypatch.setenv(BACKEND, "aot_eager")
    monkeypatch.setattr(compiling, "LONG", 0.0)
    monkeypatch.setattr(compiling, "MANY", 1)
    monkeypatch.setattr(compiling, "SECONDS", 0.0)
    plain = dataclasses.replace(made.served, classes=classes, compiled=False)
    _, expected = all_logits(plain, made, LogitStore.at(tmp_path))
    torch._dynamo.utils.counters.clear()
    torch.compiler.reset()
    model, found = all_logits(dataclasses.replace(plain, compiled=setting), made, LogitStore.at(tmp_path))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert ("(compiling took" in model.compiling.note) == (setting == "auto"), model.compiling.note
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=2e-3)
    other = made.served.key.fingerprint if not classes else plain.key.fingerprint
    assert dataclasses.replace(plain, compiled=setting).key.fingerprint == other


@pytest.mark.slow
def test_a_compiled_language_model(tmp_path, monkeypatch):
    """Its states at the decisions' positions, and its head: for all logits, and for hidden states."""
    monkeypatch.setenv(BACKEND, "aot_eager")
    tree = capitals_job(tmp_path, baseline=False)
    config = build(tree)
    prepared, teacher = prepare(config), config.teachers[0]
    [job] = teacher_jobs(config, prepared)[teacher.name]
    list(train(job))
    for keep in ("all", "hidden"):
        config = build(override(tree, {"logits.keep": keep, "method.temperature": 1.0}))
        served = served_teacher(config, prepared, teacher, [job.result()["model"]], "float32")
        splits = {n: (s, prepared.teachers[teacher.name].splits[n]) for n, s in prepared.splits.items()}
        stored = TeacherLogits(LogitStore.at(tmp_path / keep), served.key)
        [block] = missing_blocks(TeacherWork(teacher, served, splits), stored, 1000)[:1]
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        found, expected = (
            TeacherModel(dataclasses.replace(served, compiled=compiled)).logits(
                block.folders, block.positions, block.folds
            )
            for compiled in (True, False)
        )
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        for row, same in zip(found, expected, strict=True):
            np.testing.assert_allclose(row.astype(np.float32), same.astype(np.float32), atol=4e-3)


@pytest.mark.slow
def test_a_process_compiles_the_next_teacher_as_well(made, tmp_path, monkeypatch):
    """Torch compiles a function only so many times, and teachers that follow each other have the same functions."""
    monkeypatch.setenv(BACKEND, "aot_eager")
    actor = TeacherActor.__ray_metadata__.modified_class(LogitStore.at(tmp_path), 1, 0)
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=1):  # monkeypatch would leave it without a value
        torch.compiler.reset()
        for sizes in ({}, {"hidden_size": 64}):
            model = transformers.ElectraForSequenceClassification(transformers.ElectraConfig(**{**electra(), **sizes}))
            folder = tmp_path / f"model-{len(graphs)}"
            model.save_pretrained(folder)
            save_tokenizer(folder)
            served = dataclasses.replace(made.served, models=(ModelConfig(pretrained=str(folder)),), compiled=True)
            torch._dynamo.utils.counters.clear()
            actor.load(served, [])
            columns = input_columns(made.splits["train"][1].open(), actor.model.task)[:4]
            actor.model.answer(columns, np.full(4, -1))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1, 1]


class OneRow(torch.nn.Module):
    """What has memory for one row, as a compiled model can."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> Any:
        if len(inputs["input_ids"]) > 16:  # rows that are computed both ways, to compare
            torch.empty(2**50)
        return self.model(**inputs)


def test_a_batch_that_fits_only_as_it_is_ends_the_trial(made, tmp_path, monkeypatch):
    """It is not halved, which would also slow the plain models down."""
    monkeypatch.setattr(compiling, "LONG", 0.0)
    monkeypatch.setattr(compiling, "MANY", 1)
    monkeypatch.setattr(compiling, "compiled_for_all_shapes", OneRow)
    _, expected = all_logits(dataclasses.replace(made.served, compiled=False), made, LogitStore.at(tmp_path), 30)
    model, found = all_logits(dataclasses.replace(made.served, compiled="auto"), made, LogitStore.at(tmp_path), 30)
    assert model.compiling.note == (
        "torch.compile: failed (MemoryError: a batch does not fit); not used (logits.compile: auto)"
    )
    assert model.halved == 0
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


class Wrong(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> Any:
        found = self.model(**inputs)
        found.logits = found.logits + torch.tensor([0.5, 0.0])
        return found


def test_wrong_code_is_found(made, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "LONG", 0.0)
    monkeypatch.setattr(compiling, "MANY", 1)
    monkeypatch.setattr(compiling, "compiled_for_all_shapes", Wrong)
    _, expected = all_logits(dataclasses.replace(made.served, compiled=False), made, LogitStore.at(tmp_path))
    model, found = all_logits(dataclasses.replace(made.served, compiled="auto"), made, LogitStore.at(tmp_path))
    assert "the logits differ" in model.compiling.note
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("size", "same"), [(1e-6, True), (0.1, False)])
def test_what_counts_as_the_same_states(size, same):
    """Of a language model, relative to each state's norm, at its decisions alone."""
    states = torch.tensor([[[3.0, 4.0], [100.0, 0.0], [0.0, 0.0]]])
    task = SimpleNamespace(
        collate=lambda columns, processor: Batch({}, torch.zeros(1, 3, 1), torch.tensor([[[True], [True], [False]]]))
    )

    def inference(change: list[float]) -> Inference:
        model = lambda **inputs: SimpleNamespace(states=states + torch.tensor([change]))  # noqa: E731
        return Inference([model], task, None, torch.device("cpu"), keep=Keep("hidden"))

    one = inference([[5 * size, 0.0], [0.0, 0.0], [7.0, 7.0]])
    assert same_outputs(one, inference([[0.0] * 2] * 3), {}, 1e-2) == same


def test_students_do_not_wait_for_a_trial(made, monkeypatch):
    """Live rows go through compiled models only if the user says so."""
    monkeypatch.setattr(compiling, "compiled_for_all_shapes", Wrong)
    encoded, answers = made.splits["train"][1], {}
    for setting in (False, "auto", True):
        model = TeacherModel(dataclasses.replace(made.served, compiled=setting))
        model.compiling._on = bool(setting)
        columns = input_columns(encoded.open(), model.task)[:4]
        answers[setting] = np.stack(model.answer(columns, np.full(4, -1)))
    assert (answers["auto"] == answers[False]).all()
    assert (answers[True] != answers[False]).any()


def test_generated_code_is_the_users_own(tmp_path, monkeypatch):
    """Torch runs what it finds in that folder, so nobody else can have put it there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Path(default_cache_dir())
    assert folder.parent == tmp_path
    check_cache()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o775)  # as torch makes it where the umask is 002
    check_cache()
    folder.chmod(0o777)
    with pytest.raises(TrainingError, match=r"torchinductor_\w+ is .*open to others"):
        check_cache()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(TrainingError, match=r"torchinductor_\w+ is a link"):
        check_cache()
