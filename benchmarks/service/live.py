"""Live steps compared with the slower of student and teacher."""

import dataclasses
import shutil
import time
from typing import Any

import datasets
import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from raykd.common.ranks import DistContext
from raykd.data.batches import batch_order
from raykd.plan.job import Job
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.teachers.live import Directory
from raykd.teachers.serving import ServedTeacher
from raykd.training.access import TeacherAccess
from raykd.training.events import Evaluated
from raykd.training.loader import StepLoader
from raykd.training.loop import train
from service.bench import BATCH, KD, Bench
from service.stand_ins import PacedTeacher, variant

IN_FLIGHT = 4


def step_seconds(job: Job, device: torch.device, access: TeacherAccess) -> float:
    """Seconds from the request of the first step's rows to the end of the last step."""
    shutil.rmtree(job.folder, ignore_errors=True)  # its checkpoint
    looks: list[float] = []
    ends: list[float] = []

    def stop() -> bool:
        """Called before the first step waits, and again later."""
        looks.append(time.perf_counter())
        return False

    def end(*_: Any) -> None:
        if len(ends) == job.steps - 1 and device.type == "cuda":
            torch.cuda.synchronize()  # the last step ends when the GPU has finished it
        ends.append(time.perf_counter())

    hook = register_optimizer_step_post_hook(end)
    try:
        for event in train(job, DistContext(device=device), stop, access):
            if isinstance(event, Evaluated):
                break
    finally:
        hook.remove()
    return ends[-1] - looks[0]


def teacher_seconds(bench: Bench, job: Job, access: TeacherAccess) -> float:
    """Seconds of the same steps' requests and answers, without a training."""
    rows = datasets.concatenate_datasets([e.open() for e in job.train])
    member = bench.prepared.student
    ranks = DistContext(device=bench.device)
    task, processor = bench.prepared.task, member.model.processor
    loader = StepLoader(job, rows, task, processor, job.seed, None, ranks, lambda: False, access)
    order = batch_order(bench.lengths, BATCH, job.seed, job.training.group_by_length)
    since = time.perf_counter()
    for _ in loader.steps(np.arange(len(rows)), order, 0, job.steps, lambda step: True):
        pass
    return time.perf_counter() - since


def mixed(job: Job) -> Job:
    """With batches of rows of any length."""
    return dataclasses.replace(job, training=job.training.model_copy(update={"group_by_length": False}))


def overlap(bench: Bench, repeats: int) -> dict[str, Any]:
    """Live steps compared with the slower of student and teacher. The runs take turns, with the same batches.

    One step of the faster of the two is subtracted first, because before the first answer and after the last one
    nothing can overlap. Batches do not group rows by length: a student's step would then take 0.2 to 2.6 s, and the
    result would depend on how many long batches come last, when the student waits for no teacher. Paced teachers answer
    requests one at a time. A real teacher batches waiting requests, but their answers would arrive together, which in
    such a short run looks like a slow start and a slow end.
    """
    config = bench.configured(mode="live")
    plain = mixed(student_jobs(bench.configured(), bench.prepared, FINETUNE, ())[0])
    timed = plain.steps
    step_seconds(plain, bench.device, TeacherAccess())  # the first one is slow
    before = step_seconds(plain, bench.device, TeacherAccess())
    paces = {"slower": 1.25 * before / timed, "faster": 0.75 * before / timed}
    one_by_one = [dataclasses.replace(bench.served(i), batch_tokens=1) for i in (0, 1)]
    served = {
        "slower": variant(PacedTeacher, one_by_one[0], "slower", row_seconds=paces["slower"] / BATCH),
        "faster": variant(PacedTeacher, one_by_one[1], "faster", row_seconds=paces["faster"] / BATCH),
        "real": variant(ServedTeacher, bench.served(2), "real"),
    }
    jobs = {kind: mixed(student_jobs(config, bench.prepared, KD, [teacher])[0]) for kind, teacher in served.items()}
    directory = Directory.remote()  # type: ignore[attr-defined]
    gpus = {"slower": 0.0, "faster": 0.0, "real": bench.share}
    teacher_works = [
        bench.teacher_work(teacher, None, gpus[kind], split="validation") for kind, teacher in served.items()
    ]
    pool = bench.pool(teacher_works, config, lambda p: None, directory)
    access = TeacherAccess(pool.precompute_running, directory, IN_FLIGHT)
    ratios: dict[str, list[float]] = {kind: [] for kind in jobs}
    alone = []
    try:
        pool.start()
        pool.wait()
        for _ in range(repeats):
            live = {kind: step_seconds(job, bench.device, access) for kind, job in jobs.items()}
            after = step_seconds(plain, bench.device, TeacherAccess())
            student, before = (before + after) / 2, after
            alone.append(student / timed)
            for kind, seconds in live.items():
                teacher = paces[kind] * timed if kind in paces else teacher_seconds(bench, jobs[kind], access)
                ratios[kind].append((seconds - min(student, teacher) / timed) / max(student, teacher))
    finally:
        pool.close()
    shown = {kind: (float(np.median(r)), min(r), max(r)) for kind, r in ratios.items()}
    print(f"  student alone: {np.median(alone) * 1000:.1f} ms a step; {repeats} x {timed} steps of {BATCH} rows")
    for kind, (value, low, high) in shown.items():
        about = f"paced, {paces[kind] * 1000:.0f} ms a step" if kind in paces else "a real one beside it"
        print(f"  live step / max(student, teacher), {kind} teacher ({about}): {value:.4f} ({low:.4f} to {high:.4f})")
    worst = max(("slower", "faster"), key=lambda kind: shown[kind][0])
    return {
        "overlap": shown[worst][0],
        "overlap_range": list(shown[worst][1:]),
        "overlap_slower_teacher": shown["slower"][0],
        "overlap_faster_teacher": shown["faster"][0],
        "overlap_real": shown["real"][0],
        "overlap_real_range": list(shown["real"][1:]),
    }
