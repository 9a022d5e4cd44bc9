"""What only a GPU can show: make test-gpu. Several processes share one of them here."""

import dataclasses
import shutil
import warnings

import datasets
import numpy as np
import pytest
import torch
from taught import curve, student, teach, weights
from torch.optim.optimizer import register_optimizer_step_post_hook

from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError
from raykd.common.ranks import DistContext
from raykd.config.methods import Method
from raykd.distillation import compact_logits
from raykd.teachers import compiling
from raykd.teachers.serving import TeacherModel
from raykd.training.access import Training
from raykd.training.endless import endless_job
from raykd.training.gpu_use import GpuUse, measure_gpu_use
from raykd.training.launch import run_trainings
from raykd.training.loop import train

pytestmark = pytest.mark.gpu
GPU = DistContext(device=torch.device("cuda", 0))
KD = Method(type="kd", alpha=0.5, temperature=2.0)
WEIGHTED = Method(type="weighted", W=0.25, alpha=0.5, temperature=2.0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def steps():
    """Calls each function that it is given after every optimizer step, with the step's number from 1."""
    heard, count = [], 0

    def after_step(optimizer, *_):
        nonlocal count
        count += 1
        for hear in heard:
            hear(count, optimizer)

    hook = register_optimizer_step_post_hook(after_step)
    yield heard
    hook.remove()


@pytest.mark.parametrize("method", [KD, WEIGHTED, Method(type="finetune")])
def test_losses_are_the_cpus(taught, method):
    job = student(taught, method, seed=1, steps=12, training={"precision": "fp32", "eval_every": 12})
    on_cpu = curve(train(job))
    shutil.rmtree(job.folder)
    np.testing.assert_allclose(curve(train(job, GPU)), on_cpu, rtol=1e-4, atol=1e-6)


def test_bf16_is_near_to_fp32(taught):
    losses = []
    for precision in ("fp32", "bf16"):
        job = student(taught, KD, seed=2, steps=12, training={"precision": precision, "eval_every": 12})
        losses.append(curve(train(job, GPU)))
    assert losses[0] != losses[1], "it computes in bf16"
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)


def test_auto_is_one_of_both(taught):
    """Which of them was faster is in the result; the choice itself changes nothing."""
    job = student(taught, KD, seed=6, steps=6)
    losses = curve(train(job, GPU))
    precision = {"float32": "fp32", "bfloat16": "bf16"}[job.result()["dtype"]]
    same = student(taught, KD, seed=6, steps=6, training={"precision": precision})
    assert same.fingerprint != job.fingerprint
    assert curve(train(same, GPU)) == losses


@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_step_waits_for_the_gpu(taught, steps, accumulation):
    """Between two evaluations raykd reads nothing back that would make it stand still. torch itself watches.

    transformers does, in each forward pass: whether a mask masks anything. What a step does before that is hidden.
    """
    changes = {"eval_every": 10, "accumulation": accumulation}
    job = student(taught, WEIGHTED, seed=3, steps=10, training=changes)
    modes = {2: "warn", 9: "default"}  # after these steps

    def watch(n: int, _: torch.optim.Optimizer) -> None:
        if n == 9:
            torch.ones(1, device="cuda").item()  # one that is a wait, so that the watch is seen to work
        if n in modes:
            torch.cuda.set_sync_debug_mode(modes[n])

    steps.append(watch)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        try:
            list(train(job, GPU))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = {f"{w.filename}:{w.lineno}" for w in waits if "a synchronizing CUDA operation" in str(w.message)}
    own = {place for place in where if __file__ in place}
    assert len(own) == 1
    assert not [place for place in where - own if "/transformers/" not in place]


def test_attention_is_none_that_plans_for_every_shape(taught):
    """cuDNN's, which torch would take on an H100."""
    _, prepared, served = taught
    folder = prepared.teachers[served[0].name].splits["train"].folder
    teacher = TeacherModel(dataclasses.replace(served[0], dtype="bfloat16"), num_gpus=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        teacher.logits([folder], np.arange(8), np.full(8, -1))
    kinds = {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}
    assert kinds
    assert not [kind for kind in kinds if "cudnn" in kind]


def test_a_step_that_is_not_finite_changes_nothing(taught, steps):
    """AdamW leaves it out before the host knows; then the error names that step, not the next one."""
    changes = {"learning_rate": 1e30, "max_grad_norm": 1e30, "eval_every": None, "precision": "fp32"}
    job = student(taught, Method(type="finetune"), seed=4, training=changes)
    states: dict[int, torch.Tensor] = {}
    steps.append(lambda n, optimizer: states.setdefault(n, optimizer.param_groups[0]["params"][0].detach().clone()))
    with pytest.raises(TrainingError, match=r"the (loss|gradient's norm) is (nan|inf) at step \d+, .*rows \[") as error:
        list(train(dataclasses.replace(job, steps=50), GPU))
    refused = int(str(error.value).split("at step ")[1].split(",")[0])
    assert set(states) == set(range(1, refused + 1)), "no further step was begun to its end"
    if refused > 1:
        assert torch.equal(states[refused], states[refused - 1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_teachers_answer_as_on_the_cpu(taught, dtype):
    """Row by row, in many small batches that follow one another before the first is read."""
    _, prepared, served = taught
    teacher = dataclasses.replace(served[0], dtype=dtype, batch_tokens=64)
    folder = prepared.teachers[teacher.name].splits["train"].folder
    positions = np.random.default_rng(0).permutation(len(datasets.load_from_disk(str(folder))))
    folds = np.full(len(positions), -1)
    on_gpu = TeacherModel(teacher, num_gpus=1).logits([folder], positions, folds)
    on_cpu = TeacherModel(dataclasses.replace(teacher, dtype="float32")).logits([folder], positions, folds)
    tolerance = 2e-3 if dtype == "float32" else 0.05
    np.testing.assert_allclose(np.stack(on_gpu), np.stack(on_cpu), atol=tolerance)


def test_logits_that_are_not_finite_are_named(taught):
    _, prepared, served = taught
    teacher = TeacherModel(served[0], num_gpus=1)
    with torch.no_grad():
        next(teacher.models[0].parameters()).fill_(float("nan"))
    folder = prepared.teachers[served[0].name].splits["train"].folder
    with pytest.raises(TrainingError, match=rf"teacher {served[0].name}: logits\[.*\] = nan"):
        teacher.logits([folder], np.arange(8), np.full(8, -1))
    with pytest.raises(ValueError, match=r"logits\[1\] = inf"):
        compact_logits(torch.tensor([0.0, float("inf")], device="cuda"))


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_on_shares_of_one_gpu_equal_one(taught):
    config = taught[0]
    one = student(taught, KD, seed=5, training={"precision": "fp32"})
    alone = curve(train(one, GPU))
    two = student(taught, KD, seed=5, training={"precision": "fp32", "max_grad_norm": 1.0001})
    seen = []
    assert not run_trainings([Training(two, Resources(2, 1, 0.4))], config.ray, lambda _, event: seen.append(event))
    np.testing.assert_allclose(curve(seen), alone, rtol=1e-4, atol=1e-6)
    for name, ours in weights(one).items():
        torch.testing.assert_close(weights(two)[name], ours, rtol=1e-3, atol=1e-4)


def test_what_a_training_takes_of_the_gpu(taught, tmp_path):
    job = endless_job(student(taught, KD, seed=6), tmp_path, 0)
    began, *found = measure_gpu_use(Training(job, Resources(1, 1, 1.0)), lambda: False)
    [use] = found
    assert began is None
    assert isinstance(use, GpuUse)
    assert 10**7 < use.used_bytes < use.total_bytes == torch.cuda.mem_get_info()[1]
    assert 0.01 < use.busy < 1, "toy models leave a GPU mostly idle"


def test_a_teacher_says_which_batch_is_the_fastest(taught):
    """Logits are those of the batches before, to rounding."""
    _, prepared, served = taught
    folder = prepared.teachers[served[0].name].splits["train"].folder
    asked = [folder], np.arange(60), np.full(60, -1)
    plain = TeacherModel(dataclasses.replace(served[0], search_batch=False), num_gpus=1).logits(*asked)
    teacher = TeacherModel(dataclasses.replace(served[0], batch_tokens=16, search_batch=True), num_gpus=1)
    found = teacher.logits(*asked)
    assert teacher.batch_tokens >= 16
    assert f"batches of {teacher.batch_tokens} tokens" in teacher.batch_note
    np.testing.assert_allclose(np.stack(found), np.stack(plain), atol=2e-3)
    assert not TeacherModel(served[0], num_gpus=0.5).searches


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_compiled_step_is_the_plain_one(taught, accumulation):
    """With CUDA graphs and without, over evaluations, after which a graph must see the same weights."""
    changes = {"precision": "fp32", "eval_every": 10, "accumulation": accumulation}
    curves = []
    for on in (False, True):
        job = student(taught, KD, seed=7, steps=30, training={**changes, "compile": on})
        curves.append(curve(train(job, GPU)))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_teacher_agrees_with_the_plain_one(taught, dtype, monkeypatch):
    """In a trial, so that what `logits.compile: auto` compares to find wrong code passes for right code."""
    _, prepared, served = taught
    folder = prepared.teachers[served[0].name].splits["train"].folder
    monkeypatch.setattr(compiling, "LONG", 0.0)
    monkeypatch.setattr(compiling, "MANY", 1)
    teacher = TeacherModel(dataclasses.replace(served[0], dtype=dtype, compiled="auto"), num_gpus=1)
    blocks = [teacher.logits([folder], np.arange(60), np.full(60, -1), left=10**9) for _ in range(4)]
    assert teacher.compiling.used
    assert teacher.compiling.note == "", "nothing failed"
    np.testing.assert_allclose(np.stack(blocks[2]), np.stack(blocks[0]), atol=2e-3 if dtype == "float32" else 0.1)
