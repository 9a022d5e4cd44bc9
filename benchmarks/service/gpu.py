"""Three teachers and a student on fractions of one GPU."""

import shutil
import time
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from raykd.common.ranks import DistContext
from raykd.plan.trainings import student_jobs
from raykd.teachers.serving import ServedTeacher, TeacherModel
from raykd.training.access import TeacherAccess
from raykd.training.loop import train
from service.bench import BATCH, KD, Bench
from service.stand_ins import variant
from student_step import forward_flops, matmul_peak


def gpu_rates(bench: Bench, size: int) -> dict[str, Any]:
    """Three teachers precompute on a quarter of a GPU each while a student trains on the same GPU.

    Rows per second of all teachers and of the student while both run, and the teachers' forward passes as a share of
    the GPU's bf16 peak, which is measured with products of size x size matrices.
    """
    config, on_gpu = bench.configured(1024), bench.device.type == "cuda"
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

    model = TeacherModel(bench.served()).models[0]
    peak = matmul_peak(bench.device, getattr(torch, bench.dtype), size)
    share = teachers * forward_flops(model, round(bench.lengths.mean())) / peak
    print(
        f"  3 teachers and a student on {torch.cuda.get_device_name() if on_gpu else 'the CPU'}: teachers "
        f"{teachers:.0f} rows/s in all, student {student:.0f}; {share:.1%} of {peak / 1e12:.3g} TFLOP/s ({bench.dtype})"
    )
    return {"gpu_teachers_rows_s": teachers, "gpu_student_rows_s": student, "gpu_share_of_peak": share}
