"""The pool precomputes logits: by blocks, resuming where it stopped, and again where a block is damaged."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from odd_teacher import Hungry
from safetensors.torch import load_file, save_file
from tiny import reviews_job, save_tokenizer
from transformers import AutoTokenizer

from raykd.common.errors import ConfigError, TrainingError
from raykd.config.load import build, override
from raykd.config.schema import Config, ModelConfig, TeacherConfig
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, TeacherLogits
from raykd.models import prediction
from raykd.models.batching import fastest_budget
from raykd.models.identity import processor_digest
from raykd.models.opened import open_model
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher, teacher_jobs
from raykd.teachers import blocks as blocks_module
from raykd.teachers.blocks import TeacherWork, block_rows, missing_blocks
from raykd.teachers.compiling import Compiling
from raykd.teachers.pool import TeacherPool
from raykd.teachers.replica import Progress
from raykd.teachers.requests import BlockRequest
from raykd.teachers.serving import ServedTeacher, TeacherModel
from raykd.training.loop import train

BLOCK_ROWS = 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One trained teacher of the reviews job: its config, its data, the folder of its model."""
    config = build(reviews_job(tmp_path_factory.mktemp("precompute")))
    prepared = prepare(config)
    job = teacher_jobs(config, prepared)["a"][0]
    list(train(job))
    return config, prepared, job.result()["model"]


def teacher_work(config: Config, prepared: Prepared, model: str) -> TeacherWork:
    served = served_teacher(config, prepared, config.teachers[0], [model], "float32")
    splits = {n: (s, prepared.teachers["a"].splits[n]) for n, s in prepared.splits.items()}
    return TeacherWork(config.teachers[0], served, splits)


def missing(one: TeacherWork, store: Path) -> list[BlockRequest]:
    return missing_blocks(one, TeacherLogits(store, one.served.key), BLOCK_ROWS)


def compute(one: TeacherWork, store: Path, blocks: list[BlockRequest]) -> None:
    """What the actor does with each request, here."""
    model = TeacherModel(one.served)
    for block in blocks:
        rows = model.logits(block.folders, block.positions, block.folds)
        TeacherLogits(store, one.served.key).add(block.row_ids, block.input_hashes, rows)


def precompute(one: TeacherWork, store: Path, config: Config) -> list[Progress]:
    reports: list[Progress] = []
    pool = TeacherPool([one], LogitStore.at(store), config, 0, reports.append)
    try:
        pool.start()
        pool.wait()
    finally:
        pool.close()
    return reports


def test_stopped_precomputation_resumes_where_it_stopped(trained, tmp_path):
    one = teacher_work(*trained)
    blocks = missing(one, tmp_path)
    assert sum(len(b.positions) for b in blocks) == 120
    compute(one, tmp_path, blocks[:2])
    rest = missing(one, tmp_path)
    assert sum(len(b.positions) for b in rest) == 120 - 2 * BLOCK_ROWS
    done = {i.tobytes() for b in blocks[:2] for i in b.row_ids}
    assert not done & {i.tobytes() for b in rest for i in b.row_ids}
    compute(one, tmp_path, rest)
    assert missing(one, tmp_path) == []


def test_blocks_come_in_the_order_of_their_need(trained, tmp_path):
    """The first splits are one sequence of rows, in the order that is given; the others follow as they stand."""
    plain = teacher_work(*trained)
    (a, b, _), order = plain.splits, np.random.default_rng(0).permutation(80)
    one = dataclasses.replace(plain, joint_splits=2, order=order)
    blocks = missing(one, tmp_path)
    both = [b for b in blocks if len(b.folders) == 2]
    np.testing.assert_array_equal(np.concatenate([b.positions for b in both]), order)
    ids = np.concatenate([id_column(plain.splits[name][1].open(), "row_id") for name in (a, b)])
    np.testing.assert_array_equal(np.concatenate([b.row_ids for b in both]), ids[order])
    assert all(len(b.folders) == 2 for b in blocks[: len(both)]), "they come first"
    assert sum(len(b.positions) for b in blocks) == 120
    compute(one, tmp_path, blocks[:1])
    left = np.concatenate([b.positions for b in missing(one, tmp_path) if len(b.folders) == 2])
    np.testing.assert_array_equal(left, order[BLOCK_ROWS:])


@pytest.mark.usefixtures("ray_cluster")
def test_blocks_grow_where_there_would_be_too_many(trained, tmp_path, monkeypatch):
    """A student maps every block of its teachers, and has so many maps."""
    config = trained[0].model_copy(update={"logits": trained[0].logits.model_copy(update={"block_rows": 16})})
    one = teacher_work(*trained)
    two = dataclasses.replace(one, served=dataclasses.replace(one.served, dtype="bfloat16"))
    for most, rows in ((15, 16), (10, 24)):
        monkeypatch.setattr(blocks_module, "MAX_BLOCKS", most)
        pool = TeacherPool([one, two], LogitStore.at(tmp_path), config, 0, lambda p: None)
        assert [max(len(b.request.positions) for b in group.blocks) for group in pool.replica_groups] == [rows, rows]


@pytest.mark.parametrize(
    ("on_gpus", "replicas", "mean_rows", "rows"),
    [
        (False, 1, 1000, 4),
        (True, 1, 1000, 15),  # 120 rows in eight blocks
        (True, "auto", 1000, 15),
        (True, 2, 1000, 7),
        (True, 30, 1000, 4),  # as on a CPU, at least
        (True, 1, 10, 10),
        (True, 1, 1, 4),
    ],
)
def test_rows_in_a_block_that_raykd_chooses(trained, monkeypatch, on_gpus, replicas, mean_rows, rows):
    """mean_rows: of mean length, which have as many tokens as a block on a GPU can have."""
    one = teacher_work(*trained)
    one = dataclasses.replace(one, config=one.config.model_copy(update={"replicas": replicas}))
    lengths = np.concatenate([encoded.open()["length"] for _, encoded in one.splits.values()])
    monkeypatch.setattr(blocks_module, "_ROWS_ON_CPU", 4)
    monkeypatch.setattr(blocks_module, "_TOKENS_ON_GPU", (mean_rows + 0.01) * lengths.mean())
    assert block_rows(one, "auto", on_gpus, 1) == rows
    assert block_rows(one, 9, on_gpus, 1) == 9, "the user's own"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_damaged_block_is_computed_again_to_the_same_bytes(trained, tmp_path, caplog):
    config = trained[0].model_copy(update={"logits": trained[0].logits.model_copy(update={"block_rows": 64})})
    one = teacher_work(*trained)
    last = precompute(one, tmp_path, config)[-1]
    assert (last.done, last.total, last.computed, last.restarts) == (120, 120, 120, 0)
    path = max(tmp_path.rglob("*.block"), key=lambda p: p.stat().st_size)
    good = path.read_bytes()
    path.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    again = precompute(one, tmp_path, config)[-1]
    assert path.read_bytes() == good
    assert path.name in caplog.text, "the log says which block was damaged"
    assert 0 < again.computed < 120, "only its rows are computed again"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_teacher_that_answers_nan_is_named(trained, tmp_path):
    config, prepared, model = trained
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if "classifier" in n)
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"teacher a: .*not a finite.*Check its checkpoint"):
        precompute(teacher_work(config, prepared, str(broken)), tmp_path / "store", config)


def test_rows_go_to_the_fold_that_did_not_see_them():
    ids = np.arange(64, dtype=np.uint8).reshape(4, 16)
    served = ServedTeacher.__new__(ServedTeacher)
    object.__setattr__(served, "fold_ids", (ids[[2]], ids[[0, 3]]))
    np.testing.assert_array_equal(served.fold_of(ids), [1, -1, 0, 1])


def test_config_values_of_a_given_teacher_are_in_its_key(trained):
    """The same weights with another activation are another teacher."""
    config, prepared, model = trained
    one = teacher_work(config, prepared, model).served
    given = TeacherConfig.model_validate({"name": "a", "model": model})
    other = given.model_copy(update={"model": ModelConfig(pretrained=model, config={"hidden_act": "relu"})})

    def served_as(teacher: TeacherConfig):
        opened = open_model(teacher.model, prepared.task, "teachers.a.model")
        member = dataclasses.replace(prepared.teachers["a"], model=opened)
        given_prepared = dataclasses.replace(prepared, teachers=prepared.teachers | {"a": member})
        return served_teacher(config, given_prepared, teacher, [], "float32")

    plain, changed = served_as(given), served_as(other)
    assert plain.key.fingerprint == one.key.fingerprint, "trained here or given: the same model"
    assert changed.key.fingerprint != one.key.fingerprint


@pytest.mark.parametrize("change", [{"model_input_names": ["input_ids"]}, {"truncation_side": "left"}])
def test_what_a_tokenizer_emits_is_in_its_identity(tmp_path, change):
    folder = save_tokenizer(tmp_path)
    plain = AutoTokenizer.from_pretrained(folder)
    assert processor_digest(plain) == processor_digest(AutoTokenizer.from_pretrained(folder))
    assert processor_digest(plain) != processor_digest(AutoTokenizer.from_pretrained(folder, **change))
    before = processor_digest(plain)
    plain(["good film"], truncation=True, max_length=3, padding="max_length")
    assert processor_digest(plain) == before, "a call leaves no trace in it"


def test_equal_recipes_are_refused(tmp_path):
    tree = override(reviews_job(tmp_path), {"teachers.b.recipe.seed": 1})
    config = build(tree)
    with pytest.raises(ConfigError, match=r"teachers.b.recipe.seed = 1: its training is the same as teacher a's"):
        teacher_jobs(config, prepare(config))


@pytest.mark.parametrize(
    ("rates", "most", "taken", "tried"),
    [
        ({1: 100, 2: 190, 4: 195}, 64, 2, [1, 2, 4]),  # 195 is less than 5% more than 190
        ({1: 100, 2: 105, 4: 110.25, 8: 110.3}, 64, 4, [1, 2, 4, 8]),
        ({1: 100, 2: 90}, 64, 1, [1, 2]),
        ({1: 100, 2: 200, 4: None}, 64, 2, [1, 2]),  # no memory for 4
        ({1: None}, 64, 1, []),  # not even for the first: `predict` halves it
        ({1: 100, 2: 200, 3: 300}, 3, 3, [1, 2, 3]),  # no block has more
        ({1: 100}, 0, 1, [1]),
    ],
)
def test_batches_double_until_they_are_no_faster(rates, most, taken, tried):
    budget, measured = fastest_budget(rates.__getitem__, 1, most)
    assert budget == taken
    assert measured == [(tokens, rates[tokens]) for tokens in tried]


def test_a_batch_is_searched_where_a_gpu_is_not_shared(trained, tmp_path):
    """Here without one: nothing is measured, whatever the config says, and `auto` is the same batch as ever."""
    config, prepared, model = trained
    auto = teacher_work(config, prepared, model).served
    fixed = served_teacher(
        build(override(config.model_dump(exclude={"search"}), {"logits.batch_tokens": 16384})),
        prepared,
        config.teachers[0],
        [model],
        "float32",
    )
    assert (auto.batch_tokens, auto.search_batch) == (fixed.batch_tokens, True)
    assert not fixed.search_batch
    assert auto.key.fingerprint == fixed.key.fingerprint
    assert not any(TeacherModel(auto, gpus).searches for gpus in (0, 0.5, 1))


def test_a_searched_batch_fits_and_changes_no_logit_by_more_than_rounding(trained, tmp_path):
    """The search itself, on the CPU, from batches of one row, with memory for 8 rows."""
    one = teacher_work(*trained)
    [block] = missing_blocks(one, TeacherLogits(tmp_path, one.served.key), 60)[:1]
    asked = block.folders, block.positions, block.folds
    whole = TeacherModel(one.served).logits(*asked)
    model = TeacherModel(dataclasses.replace(one.served, batch_tokens=1))
    model.models = [Hungry(model.models[0], 8)]
    model.searches = True
    found = model.logits(*asked)
    assert 1 <= model.batch_tokens <= 8 * 32, "max_length is 32"
    assert f"batches of {model.batch_tokens} tokens" in model.batch_note
    note = model.batch_note
    model.logits(*asked)
    assert model.batch_note == note, "once"
    np.testing.assert_allclose(np.stack(found), np.stack(whole), atol=2e-3)


def test_on_a_gpu_the_last_batch_is_sent_before_it_is_read(monkeypatch):
    """And `on_sent` is called in between. A device that is only named so stands for a GPU."""
    happened: list[str] = []

    class Sent:
        def __init__(self, inference, columns):
            self.name = columns["name"]
            happened.append(f"send {self.name}")

        def get(self):
            happened.append(f"read {self.name}")
            return []

    class Rows:
        lengths = np.array([9, 5, 1])

        def __len__(self):
            return 3

        def __getitem__(self, positions):
            return {"name": "".join(map(str, positions))}

    monkeypatch.setattr(prediction, "pending", Sent)
    task = SimpleNamespace(predicts_tokens=False)
    inference: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), models=[], task=task)
    batches = prediction.predict(inference, Rows(), batch_tokens=9, on_sent=lambda: happened.append("all sent"))
    assert [positions.tolist() for positions, _ in batches] == [[0], [1], [2]]
    assert happened == ["send 0", "send 1", "read 0", "send 2", "read 1", "all sent", "read 2"]


@pytest.mark.parametrize(("setting", "overlaps"), [(True, True), (False, True), ("auto", False)])
def test_blocks_that_are_timed_do_not_overlap(setting, overlaps):
    assert Compiling(setting).overlaps == overlaps


def test_a_pool_that_fails_at_its_end_says_so(trained, tmp_path, monkeypatch):
    config, _, _ = trained
    pool = TeacherPool([], LogitStore.at(tmp_path / "store"), config, 0, lambda progress: None)
    monkeypatch.setattr(pool, "_note_costs", lambda: (_ for _ in ()).throw(OSError("stale file handle")))
    pool.precompute_running.up()
    pool._run()
    assert not pool.precompute_running.path.exists()
    with pytest.raises(TrainingError, match="at its end: OSError: stale file handle"):
        pool.wait()


@pytest.mark.parametrize("given", [0, -1, "many"])
def test_impossible_batches(trained, given):
    with pytest.raises(ConfigError) as caught:
        build(override(trained[0].model_dump(exclude={"search"}), {"logits.batch_tokens": given}))
    assert caught.value.key == "logits.batch_tokens"
