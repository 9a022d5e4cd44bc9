"""The driver's thread that runs the teachers' replicas."""

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from made_up import made_encoded, served, teacher_work, text_job
from measure import listed, say
from rich.console import Console

from raykd.common.progress import Bars
from raykd.config.load import build
from raykd.logits import LogitStore
from raykd.tasks import make_task
from raykd.teachers.pool import TeacherPool
from raykd.teachers.serving import ServedTeacher, TeacherModel

HERE = Path(__file__).parent
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


@dataclasses.dataclass(frozen=True)
class SleepingTeacher(ServedTeacher):
    """Sleeps for each block, because only the driver is measured."""

    block_seconds: float = 0.0

    def load(self, num_gpus: float) -> TeacherModel:
        return SleepingModel(self)


class SleepingModel(TeacherModel):
    def __init__(self, taught: SleepingTeacher) -> None:
        self.served, self.block_seconds = taught, taught.block_seconds
        self.task, self.batch_tokens = make_task(taught.task, taught.label_names), taught.batch_tokens

    def logits(
        self,
        folders: Sequence[Path],
        positions: np.ndarray,
        folds: np.ndarray,
        left: int = 0,
        on_sent: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        time.sleep(self.block_seconds)
        return list(np.zeros((len(positions), 1, 2), np.float16))


class WatchedPool(TeacherPool):
    """A pool that measures `cpu`: seconds of its own thread once all replicas are loaded."""

    cpu = 0.0

    def _run(self) -> None:
        super()._run()
        self.cpu = time.thread_time()


def filling(folder: Path, replicas: int, blocks: int, rate: float) -> dict[str, float]:
    """The driver's CPU time per block. rate: blocks per second of all replicas."""
    rows_a_block = 16
    encoded = made_encoded(folder, blocks * rows_a_block + replicas)
    teacher = served(f"sleeping-{replicas}", SleepingTeacher, block_seconds=replicas / rate)
    tree = text_job(folder, HERE, "text-classification") | {"logits": {"block_rows": rows_a_block}}
    config = build(tree)
    config.store.mkdir(parents=True, exist_ok=True)
    bars = Bars(Console(file=io.StringIO()), None)
    heard: list[float] = []
    marks: list[tuple[float, float]] = []  # of the whole process, when a block was answered

    def on_progress(p: Any) -> None:
        bars.update(f"logits of {p.teacher}", p.done, p.total, f"{p.per_replica:.0f} rows/s", news=False)
        heard.append(time.thread_time())
        marks.append((time.perf_counter(), time.process_time()))

    one = teacher_work(encoded, blocks * rows_a_block, replicas, teacher)
    pool = WatchedPool([one], LogitStore.at(folder / "pool-store"), config, 0.0, on_progress)
    since = time.perf_counter()
    try:
        pool.start()
        pool.ready()
        while pool.progress[0].replicas < replicas:
            pool.check()
            time.sleep(0.05)
        started = time.perf_counter() - since
        pool.wait()
    finally:
        pool.close()
    part = slice(len(heard) // 4, -len(heard) // 10 or None)  # without the start and the end
    thread, both = heard[part], marks[part]
    count, wall = len(thread) - 1, both[-1][0] - both[0][0]
    return {
        "thread_ms_per_block": 1000 * (thread[-1] - thread[0]) / count,
        "process_ms_per_block": 1000 * (both[-1][1] - both[0][1]) / count,
        "blocks_per_s": count / wall,
        "loaded_after_s": started,
    }


def part(folder: Path, quick: bool) -> dict[str, Any]:
    found = {}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        for replicas in (2, 4) if quick else (4, 12, 36):
            got = filling(folder, replicas, 60 if quick else 400, 20.0)
            found[str(replicas)] = got
            say(f"{replicas} replicas: {listed(got)}")
    finally:
        ray.shutdown()
    return found
