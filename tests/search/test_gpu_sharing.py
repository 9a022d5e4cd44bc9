"""How many trials share a GPU: the decision by hand-computed values, and a real sweep on a logical GPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from odd_teacher import broken_gpu
from tiny import reviews_job
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from raykd.cluster.flags import Flag
from raykd.cluster.resources import Resources
from raykd.common.device_errors import cuda_error, gpu_failed, gpu_is_full
from raykd.common.errors import ConfigError, TrainingError
from raykd.config.load import build, override
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.search.gpu_sharing import GpuSharing, largest_job, measure_on_cluster, trials_per_gpu
from raykd.search.jobs import TrialJobs
from raykd.search.space import Space
from raykd.training.access import Training
from raykd.training.gpu_use import GpuUse, computing_seconds, settled

GB = 10**9
SCRIPT = Path(__file__).parents[1] / "shared_gpu_sweep.py"


@pytest.mark.parametrize(
    ("used", "busy", "cpus", "num_cpus", "trials", "count", "reason"),
    [
        (2, 0.24, 100, 1, 100, 4, "the GPU is busy"),  # 1 / 0.24 = 4.17: a fifth would add 0.17 of a trial's speed
        (2, 0.3, 100, 1, 100, 4, "the GPU is busy"),  # 3.33: the fourth adds 0.33
        (2, 0.55, 100, 1, 100, 2, "the GPU is busy"),  # 1.82: the second adds 0.82
        (2, 0.8, 100, 1, 100, 2, "the GPU is busy"),  # 1.25: just enough
        (2, 0.85, 100, 1, 100, 1, "the GPU is busy"),  # 1.18
        (2, 1.0, 100, 1, 100, 1, "the GPU is busy"),
        (30, 0.05, 100, 1, 100, 2, "to spare"),  # 0.9 * 80 = 72 GB: two of 30
        (36, 0.05, 100, 1, 100, 2, "to spare"),
        (37, 0.05, 100, 1, 100, 1, "to spare"),
        (79, 0.05, 100, 1, 100, 1, "to spare"),  # not even one has the margin, but there is no fewer
        (1, 0.05, 16, 5, 100, 3, "16 CPUs"),
        (1, 0.05, 4, 0.1, 100, 4, "4 CPUs"),  # each needs a CPU to launch its kernels, whatever it reserves
        (1, 0.0, 100, 1, 6, 6, "no more trials"),
    ],
)
def test_trials_per_gpu(used, busy, cpus, num_cpus, trials, count, reason):
    found, why = trials_per_gpu(GpuUse(used * GB, 80 * GB, busy), cpus, num_cpus, trials)
    assert found == count
    assert reason in why


@pytest.mark.parametrize("count", range(1, 33))
def test_shares_fill_a_gpu_and_no_more(count):
    """Ray counts in parts of 1/10,000, rounded: 7 times 0.1429 would be more than one."""
    size = Resources(1, 1, 1.0).sharing(count)
    assert round(size.num_gpus * 10_000) * count <= 10_000 < round(size.num_gpus * 10_000) * (count + 1)
    assert size.per_gpu == count
    assert size.measured == (count > 1)
    assert size.halved.per_gpu == max(1, count // 2)


def test_memory_that_ends_halves_once_for_each_number(tmp_path):
    sharing = GpuSharing(build(override(reviews_job(tmp_path), {"student.num_gpus": "auto"})), 1)
    sharing.size = four = sharing.size.sharing(4)
    assert "4 trials" in sharing.halve(four)
    assert sharing.size.per_gpu == 2
    sharing.halve(four)  # another one of the four
    assert sharing.size.per_gpu == 2
    sharing.halve(sharing.size)
    assert (sharing.size.num_gpus, sharing.size.measured) == (1, False)


@pytest.mark.parametrize(
    ("batch_sizes", "widths", "largest"),
    [([4, 8], [16], (8, 16)), ([8], [16, 48], (8, 48)), ([8, 9], [16, 48], (9, 48))],
)
def test_the_training_to_measure_is_the_largest(tmp_path, batch_sizes, widths, largest):
    space = {"training.batch_size": batch_sizes, "student.model.config.hidden_size": widths}
    search = {"trials": 4, "algorithm": "grid", "space": {key: {"grid": grid} for key, grid in space.items()}}
    config = build(reviews_job(tmp_path, search=search))
    job = largest_job(TrialJobs(Space(config), prepare(config)))
    assert (job.training.batch_size, job.model.config["hidden_size"]) == largest


def test_auto_is_one_gpu_until_it_is_measured_and_none_without(tmp_path):
    config = build(override(reviews_job(tmp_path), {"student.num_gpus": "auto"}))
    assert Resources.of(config.student, 2) == Resources.of(build(reviews_job(tmp_path)).student, 2)
    assert Resources.of(config.student, 0).num_gpus == 0
    assert not GpuSharing(config, 0).open
    assert not GpuSharing(build(override(reviews_job(tmp_path), {"student.num_gpus": 0.5})), 1).open


def test_a_share_is_no_part_of_a_training(tmp_path):
    prints = set()
    for gpus in (None, 0.25, "auto"):
        config = build(override(reviews_job(tmp_path), {"student.num_gpus": gpus}))
        prints.add(student_jobs(config, prepare(config), FINETUNE, ())[0].fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("given", [-0.5, 2, "some"])
def test_impossible_shares(tmp_path, given):
    with pytest.raises(ConfigError) as caught:
        build(override(reviews_job(tmp_path), {"student.num_gpus": given}))
    assert caught.value.key == "student.num_gpus"
    assert "auto" in str(caught.value) or given != "some"


def test_errors_of_a_full_gpu():
    assert gpu_is_full(torch.OutOfMemoryError("CUDA out of memory"))
    assert gpu_is_full(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert gpu_is_full(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"))
    assert gpu_is_full(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not gpu_is_full(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not gpu_is_full(None)


def test_errors_of_a_gpu_that_has_failed():
    for text in (
        "CUDA driver error: unknown error",
        "CUDA unknown error - this may be due to an incorrectly set up environment",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1131',
    ):
        assert gpu_failed(RuntimeError(text)), text
        assert cuda_error(RuntimeError(text)) == text
    assert cuda_error(broken_gpu()) == "CUDA error: an illegal memory access was encountered"
    assert gpu_failed(broken_gpu())
    assert cuda_error(torch.AcceleratorError("what it says\nand its advice")) == "what it says"
    for certain in ("device-side assert triggered", "no kernel image is available for execution on the device"):
        assert cuda_error(RuntimeError(f"CUDA error: {certain}")), "its process cannot go on"
        assert not gpu_failed(RuntimeError(f"CUDA error: {certain}")), "nor can another"
    assert not gpu_failed(TrainingError("a GPU is held, but torch cannot use it (CUDA unknown error)")), (
        "the user has to act"
    )
    for other in (
        RuntimeError("CUDA error: out of memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False"),
        None,
    ):
        assert not cuda_error(other), other


def test_the_time_of_a_gpu_is_that_of_its_kernels():
    """A real profiler's events of the CPU, and made-up ones of a kernel and of a range that a user has marked."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(8, 8) @ torch.ones(8, 8)
    events = list(profiler.key_averages())
    assert events
    assert computing_seconds(profiler) == 0.0, "the CPU's"
    of_gpu, read = [], ("device_type", "self_device_time_total", "is_user_annotation")
    for marked in (False, True):
        assert all(hasattr(events[0], name) for name in read)
        of_gpu.append(SimpleNamespace(**dict(zip(read, (DeviceType.CUDA, 2500.0, marked), strict=True))))
    both = SimpleNamespace(key_averages=lambda: [*events, *of_gpu])
    assert computing_seconds(both) == pytest.approx(2.5e-3), "microseconds"


def test_a_compiled_training_has_settled_once_no_step_is_an_outlier():
    steady = [0.0100, 0.0105] * 6
    assert settled(steady)
    assert settled([5.0, *steady]), "the first one was compiled"
    assert not settled([*steady, 0.0150]), "in a second of 100 steps, one length was recorded for half a second"
    assert not settled(steady[:9]), "too few to know"


@pytest.mark.slow
def test_a_process_without_a_gpu_measures_nothing_and_says_so(ray_cluster, tmp_path):
    config = build(reviews_job(tmp_path))
    job = student_jobs(config, prepare(config), FINETUNE, ())[0]
    stop = Flag(config.store, "stop", every=0.0)
    asked = Training(job, Resources(1, 1, 0.0)), config.ray, stop, lambda: None
    assert measure_on_cluster(*asked) == "torch finds no GPU in its process"
    stop.up()
    assert measure_on_cluster(*asked) == "the sweep was stopped"
    assert not list(config.store.glob("probe-*"))


@pytest.mark.long
def test_a_sweep_on_a_shared_gpu_whose_memory_ends(tmp_path):
    """On one logical GPU, which a training is said to keep busy half of the time.

    The own weighting of its method finds no memory at its first call, as a trial that shares a GPU can.
    """
    ended = subprocess.run([sys.executable, SCRIPT, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said, seen = json.loads(ended.stdout.splitlines()[-1]), ended.stdout
    assert seen.count("student.num_gpus = auto: 2 trials on each GPU") == 1, seen
    assert seen.count("out of GPU memory with 2 trials on a GPU; it runs again with 1 on each") == 1, seen
    assert said["measured"] == [1.0], "one training, on a whole GPU"
    assert set(said["states"].values()) == {"finished"}, seen
    assert len(said["states"]) == said["planned"]
    assert said["shares"].pop("weighted 1") == 1.0, "GPU hours count the share that it ended with"
    assert set(said["shares"].values()) == {0.5}, "the trials that ran at the same time have kept theirs"
    assert said["again"] == ["out of GPU memory with 2 on each GPU, now 1"], "a training on fresh seeds resumes, too"
    assert said["failed"] == []
    assert said["processes"] == 2, "one that has used a GPU stays on it, whichever Ray assigns to its next task"
