"""One teacher on a GPU of its own, and three teachers and a student on fractions of one GPU."""

import shutil
import time
from typing import Any, Literal

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from raykd.common.ranks import DistContext
from raykd.plan.trainings import student_jobs
from raykd.teachers.serving import ServedTeacher, TeacherModel
from raykd.training.access import TeacherAccess
from raykd.training.loop import train
from service.bench import BATCH, KD, Bench
from service.host import fill_rate
from service.stand_ins import variant
from student_step import forward_flops, matmul_peak


def gpu_rates(bench: Bench, size: int) -> dict[str, Any]:
    """Three teachers precompute on a quarter of a GPU each while a student trains on the same GPU.

    Rows per second of all teachers and of the student while both run, and the teachers' forward passes as a share of
    the GPU's bf16 peak, which is measured with products of size x size matrices.
    """
    config, on_gpu = bench.configured("auto"), bench.device.type == "cuda"
    served = [variant(ServedTeacher, bench.served(i), f"gpu {i}") for i in range(3)]
    job = student_jobs(config, bench.prepared, KD, served)[0]
    shutil.rmtree(job.folder, ignore_errors=True)
    pool = bench.pool([bench.teacher_work(s, bench.order, 0.25 * on_gpu) for s in served], config, lambda p: None)
    steps: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(time.perf_counter()))
    try:
        pool.start()
        for _ in train(
            job, DistContext(device=bench.device), pool.precompute_done.is_set, TeacherAccess(pool.precompute_running)
        ):
            pass
        pool.wait()
    finally:
        hook.remove()
        pool.close()
    teachers = sum(p.computed / p.took for p in pool.progress)
    # Fast teachers can have ended before the student has made two steps.
    student = BATCH * (len(steps) - 1) / max(steps[-1] - steps[0], 1e-9) if len(steps) > 1 else 0.0

    share, peak = _share_of_peak(bench, teachers, size)
    print(
        f"  3 teachers and a student on {_device_name(bench)}: teachers {teachers:.0f} rows/s in all, student "
        f"{student:.0f}; {share:.1%} of {peak}"
    )
    return {"gpu_teachers_rows_s": teachers, "gpu_student_rows_s": student, "gpu_share_of_peak": share}


def alone(bench: Bench, size: int, repeats: int) -> dict[str, Any]:
    """One teacher precomputes with a GPU of its own, in the blocks and batches that raykd chooses.

    Its rows per second, and its forward passes as a share of the peak, as in `gpu_rates`.
    """
    on_gpu = bench.device.type == "cuda"
    rows: int | Literal["auto"] = (
        "auto" if on_gpu else bench.block_rows
    )  # on a CPU there are too few rows for several blocks of 1,024
    rates = [
        fill_rate(bench, variant(ServedTeacher, bench.served(), f"alone {repeat}"), rows, float(on_gpu))
        for repeat in range(repeats)
    ]
    rate = float(np.median(rates))
    share, peak = _share_of_peak(bench, rate, size)
    print(
        f"  a teacher alone on {_device_name(bench)}: {rate:.0f} rows/s ({min(rates):.0f} to {max(rates):.0f}); "
        f"{share:.1%} of {peak}"
    )
    return {"alone_rows_s": rate, "alone_rows_s_range": [min(rates), max(rates)], "alone_share_of_peak": share}


def _share_of_peak(bench: Bench, rate: float, size: int) -> tuple[float, str]:
    """The share, and the peak in words. rate: rows per second."""
    model = TeacherModel(bench.served()).models[0]
    peak = matmul_peak(bench.device, getattr(torch, bench.dtype), size)
    share = rate * forward_flops(model, round(bench.lengths.mean())) / peak
    return share, f"{peak / 1e12:.3g} TFLOP/s ({bench.dtype})"


def _device_name(bench: Bench) -> str:
    return torch.cuda.get_device_name() if bench.device.type == "cuda" else "the CPU"
