"""Teachers that are served like real ones, but with another model."""

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from raykd.logits import TeacherLogits
from raykd.models import prediction
from raykd.tasks import make_task
from raykd.teachers.serving import ServedTeacher, TeacherModel

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

LOAD_SECONDS = 300.0  # longest wait of a paced teacher for the others


@dataclasses.dataclass(frozen=True)
class PacedTeacher(ServedTeacher):
    """Sleeps for its rows. meeting: a folder that must contain `parties` files before the first replica is loaded."""

    row_seconds: float = 0.0
    meeting: str = ""
    parties: int = 1

    def load(self, num_gpus: float) -> TeacherModel:
        if self.meeting:
            meet(self.meeting, str(os.getpid()), self.parties)
        return PacedModel(self)


class PacedModel(TeacherModel):
    def __init__(self, served: PacedTeacher) -> None:
        self.served, self.row_seconds, self.meeting = served, served.row_seconds, served.meeting
        self.task, self.batch_tokens = make_task(served.task, served.label_names), served.batch_tokens
        self.started = False

    def logits(
        self,
        folders: Sequence[Path],
        positions: np.ndarray,
        folds: np.ndarray,
        left: int = 0,
        on_sent: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        if self.meeting and not self.started:
            Path(self.meeting, f"{os.getpid()}.started").write_text(repr(time.time()))
        self.started = True
        return self._pace(len(positions))

    def answer(self, columns: Mapping[str, Any], folds: np.ndarray) -> list[np.ndarray]:
        return self._pace(len(folds))

    def _pace(self, rows: int) -> list[np.ndarray]:
        time.sleep(self.row_seconds * rows)
        return list(np.zeros((rows, 1, 2), np.float16))


@dataclasses.dataclass(frozen=True)
class FreeTeacher(ServedTeacher):
    """Computes nothing: all that takes time is the service around it."""

    def load(self, num_gpus: float) -> TeacherModel:
        prediction.ROWS_ON_CPU = prediction.ROWS_ON_GPU  # in this process: a GPU's batches
        model = TeacherModel(self, num_gpus)
        model.models, model.batch_tokens = [FreeModel(len(self.label_names))], prediction.BATCH_TOKENS
        return model


class FreeModel(torch.nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.size = classes  # a name that torch has, like "classes", would take a module of torch along

    def forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), self.size, device=input_ids.device))


@dataclasses.dataclass(frozen=True)
class TurnTeacher(ServedTeacher):
    """The real model, but it waits for its turn before each block, and ends it when the block is stored.

    A replica stores a block while it computes the next one. Here it stores it first, so that this time is counted.
    """

    turns: Any = None

    def load(self, num_gpus: float) -> TeacherModel:
        return TurnModel(self, num_gpus)


class TurnModel(TeacherModel):
    def __init__(self, served: TurnTeacher, num_gpus: float) -> None:
        super().__init__(served, num_gpus)
        self.turns, self.stored = served.turns, threading.Event()
        self.stored.set()
        add = TeacherLogits.add

        def added(*given: Any) -> Path:
            block = add(*given)
            self.stored.set()
            return block

        TeacherLogits.add = added  # type: ignore[assignment, method-assign]

    def logits(
        self,
        folders: Sequence[Path],
        positions: np.ndarray,
        folds: np.ndarray,
        left: int = 0,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Sequence[np.ndarray]:
        if not self.stored.wait(LOAD_SECONDS):
            raise TimeoutError("the block before was not stored")
        self.stored.clear()
        ray.get(self.turns.take.remote("fill"))
        return super().logits(folders, positions, folds, left)


def variant(kind: type[ServedTeacher], served: ServedTeacher, weights: str, **more: Any) -> Any:
    """The teacher as another kind, whose logits have a key of their own in the store."""
    known = {f.name: getattr(served, f.name) for f in dataclasses.fields(served)} | {"digests": (weights,)}
    return kind(**known, **more)


def meet(folder: str, name: str, parties: int) -> None:
    Path(folder, f"{name}.here").touch()
    limit = time.monotonic() + LOAD_SECONDS
    while len(list(Path(folder).glob("*.here"))) < parties and time.monotonic() < limit:
        time.sleep(0.01)


def started(folder: str) -> float:
    """When a loaded replica got its first block."""
    return min(float(path.read_text()) for path in Path(folder).glob("*.started"))
