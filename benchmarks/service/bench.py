"""What all parts of the benchmark share: data, models, pools."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import bootstrap

from raykd.cluster.running import cluster_gpus
from raykd.common.ranks import local_device
from raykd.config.load import build
from raykd.config.methods import Method
from raykd.config.schema import Config
from raykd.data.batches import first_epoch
from raykd.logits import LogitStore
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import served_teacher
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.pool import TeacherPool
from raykd.teachers.serving import ServedTeacher
from student_step import job_tree
from sweep import save_teachers

BATCH = 32
BLOCK_ROWS, GPU_BLOCK_ROWS = 256, 2048  # of the precomputation that is compared with a bare loop
KD = Method(type="kd", alpha=0.5, temperature=2.0)


class Bench:
    """The data and the teacher, prepared once."""

    def __init__(self, data: str, model: str, folder: str, blocks: int, steps: int) -> None:
        self.device = local_device(1)
        on_gpu = self.device.type == "cuda"
        self.block_rows = GPU_BLOCK_ROWS if on_gpu else BLOCK_ROWS
        self.dtype = "bfloat16" if on_gpu else "float32"  # as raykd chooses itself
        tree = job_tree(data, model, self.block_rows * blocks // BATCH, folder)
        tree["training"] |= {"steps": steps, "eval_every": steps}
        self.folder, self.config = folder, build(tree)
        self.prepared: Prepared = prepare(self.config)
        save_teachers(model, Path(folder), tree, len(self.config.teachers))  # with heads, which the model may lack
        self.gpus = cluster_gpus()
        self.share = 0.5 if self.gpus else 0.0  # half of a GPU for a real teacher; the bare loop has the other half
        encoded = self.prepared.teachers["t0"].splits["train"]
        self.train_folder = encoded.folder
        self.lengths = np.asarray(encoded.open().select_columns("length")[:]["length"])
        self.order = first_epoch(self.lengths, BATCH, 0, True)

    def configured(self, block_rows: int | Literal["auto"] | None = None, mode: str = "stored") -> Config:
        rows = block_rows or self.block_rows
        logits = self.config.logits.model_copy(update={"block_rows": rows, "mode": mode})
        return self.config.model_copy(update={"logits": logits})

    def served(self, teacher: int = 0) -> ServedTeacher:
        folder = f"{self.folder}/t{teacher}"
        return served_teacher(self.config, self.prepared, self.config.teachers[teacher], [folder], self.dtype)

    def teacher_work(
        self, served: ServedTeacher, order: np.ndarray | None, gpus: float, replicas: int = 1, split: str = "train"
    ) -> TeacherWork:
        teacher = next(t for t in self.config.teachers if t.name == served.name)
        teacher = teacher.model_copy(update={"num_gpus": gpus, "replicas": replicas})
        splits = {split: (self.prepared.splits[split], self.prepared.teachers[served.name].splits[split])}
        return TeacherWork(teacher, served, splits, 1, order)

    def pool(
        self, teacher_works: list[TeacherWork], config: Config, heard: Callable[[Any], None], directory: Any = None
    ) -> Any:
        return TeacherPool(teacher_works, LogitStore.of(config), config, self.gpus, heard, directory)

    def meeting(self) -> str:
        return tempfile.mkdtemp(dir=self.folder)


def middle(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95% bootstrap interval."""
    values = np.asarray(ratios)
    found = bootstrap((values,), np.median, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
    return float(np.median(values)), *map(float, found.confidence_interval)  # type: ignore[return-value]
