"""Measurements of the queue alone: more replicas, and the first step from an empty store."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.optim.optimizer import register_optimizer_step_post_hook

from raykd.common.ranks import DistContext
from raykd.plan.trainings import student_jobs
from raykd.training.access import TeacherAccess
from raykd.training.loop import train
from service.bench import KD, Bench
from service.stand_ins import PacedTeacher, started, variant


def scaling(bench: Bench, repeats: int, block_seconds: float = 0.5, rows: int = 32, blocks: int = 12) -> dict[str, Any]:
    """Rows per second of a paced teacher from the start of its first block: four replicas compared with one."""
    config = bench.configured(rows)

    def rate(replicas: int, repeat: int) -> float:
        folder, order = bench.meeting(), bench.order[: rows * blocks * replicas]
        name = f"{replicas} replicas, {repeat}"
        pace = {"row_seconds": block_seconds / rows, "meeting": folder, "parties": replicas}
        served = variant(PacedTeacher, bench.served(), name, **pace)
        ends: list[float] = []
        teacher_work = bench.teacher_work(served, order, 0.0, replicas)
        pool = bench.pool([teacher_work], config, lambda p: ends.append(time.time()))
        try:
            pool.start()
            pool.wait()
        finally:
            pool.close()
        return len(order) / (ends[-1] - started(folder))

    pairs = [(rate(1, i), rate(4, i)) for i in range(repeats)]
    ratios = [four / one for one, four in pairs]
    value = float(np.median(ratios))
    print(
        f"  4 replicas / 1 (paced, {block_seconds:g} s a block of {rows}): {value:.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}); {np.median([p[1] for p in pairs]):.0f} and {np.median([p[0] for p in pairs]):.0f} rows/s"
    )
    return {"scaling_4": value, "scaling_4_range": [min(ratios), max(ratios)]}


def first_step(bench: Bench, block_seconds: float, blocks: int, rows: int = 256) -> dict[str, Any]:
    """From an empty store: a student that is ready waits for the first block of a paced teacher."""
    config, folder = bench.configured(rows), bench.meeting()
    pace = {"row_seconds": block_seconds / rows, "meeting": folder, "parties": 2}
    served = variant(PacedTeacher, bench.served(), "first step", **pace)
    job = student_jobs(config, bench.prepared, KD, [served])[0]
    blocks_end: list[float] = []
    teacher_work = bench.teacher_work(served, bench.order[: rows * blocks], 0.0)
    pool = bench.pool([teacher_work], config, lambda p: blocks_end.append(time.time()))
    steps_end: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps_end.append(time.time()))

    def stop() -> bool:
        """Called when the student is ready for a step's logits."""
        Path(folder, "student.here").touch()
        return bool(steps_end)

    try:
        pool.start()
        for _ in train(job, DistContext(device=bench.device), stop, TeacherAccess(pool.precompute_running)):
            pass
        pool.wait()
    finally:
        hook.remove()
        pool.close()
    begun = started(folder)
    first, filled = steps_end[0] - begun, blocks_end[-1] - begun
    print(
        f"  first step {first:.2f} s after the start of a fill (paced, {block_seconds:g} s a block of {rows} rows) "
        f"that took {filled:.2f} s"
    )
    return {"first_step_s": first, "block_s": block_seconds, "fill_s": filled}
