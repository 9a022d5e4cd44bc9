"""The Ray actor that hosts one teacher. Thin: what it does with a model is in `serving`."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch

from raykd.environment import set_environment
from raykd.logits import TeacherLogits
from raykd.teachers.serving import ServedTeacher, TeacherModel


@dataclass(frozen=True)
class BlockRequest:
    """Rows of one split to be computed and kept as one block. All arrays have one entry a row.

    folder: the split as this teacher is fed it. positions: rows in it. folds: which fold model to ask.
    row_ids, input_hashes: (n, 16) uint8, what the rows are stored under.
    """

    folder: Path
    positions: np.ndarray
    folds: np.ndarray
    row_ids: np.ndarray
    input_hashes: np.ndarray


@dataclass(frozen=True)
class BlockAnswer:
    path: Path
    rows: int
    seconds: float


@ray.remote
class TeacherActor:
    def __init__(self, served: ServedTeacher, store: Path, num_cpus: float, num_gpus: float) -> None:
        set_environment()
        torch.set_num_threads(max(1, int(num_cpus)))
        self.model = TeacherModel(served, num_gpus)
        self.logits = TeacherLogits(store, served.key)

    def fill(self, request: BlockRequest) -> BlockAnswer:
        started = time.monotonic()
        rows = self.model.logits(request.folder, request.positions, request.folds)
        path = self.logits.add(request.row_ids, request.input_hashes, rows)
        return BlockAnswer(path, len(rows), time.monotonic() - started)
