"""A teacher as it serves: one model, or the k fold models that speak as one. No Ray in sight."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np

from raykd.config import ModelConfig, TaskConfig
from raykd.errors import TrainingError
from raykd.hashing import digest, fingerprint
from raykd.logits import TeacherKey
from raykd.models import load_model, load_processor
from raykd.prediction import predict
from raykd.ranks import local_device
from raykd.tasks import make_task


@dataclass(frozen=True)
class ServedTeacher:
    """Everything that a teacher's logits depend on.

    models: one, or one a fold; each gives the logits of the rows that it did not see.
    fold_ids: per fold (n, 16) uint8, the ids of the raw rows that this fold's model did not see, sorted.
    """

    name: str
    task: TaskConfig
    label_names: tuple[str, ...]
    models: tuple[ModelConfig, ...]
    digests: tuple[str, ...]
    processor: str
    preprocessing: str
    dtype: str
    batch_tokens: int
    fold_ids: tuple[np.ndarray, ...] = field(default=())

    @property
    def key(self) -> TeacherKey:
        weights = self.digests[0]
        if self.fold_ids:
            weights = fingerprint([self.digests, [digest(ids.tobytes()).hex() for ids in self.fold_ids]])
        return TeacherKey(weights, self.processor, self.preprocessing, self.dtype, about={"name": self.name})

    def fold_of(self, ids: np.ndarray) -> np.ndarray:
        """(N, 16) uint8 raw row ids to (N,) int: the model that did not see a row, -1 if none saw it."""
        folds = np.full(len(ids), -1)
        for fold, members in enumerate(self.fold_ids):
            folds[np.isin(_keys(ids), _keys(members))] = fold
        return folds


def _keys(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view(f"S{ids.shape[1]}").ravel()


class TeacherModel:
    """The loaded models of one teacher."""

    def __init__(self, served: ServedTeacher, num_gpus: float = 0) -> None:
        self.served = served
        self.task = make_task(served.task, served.label_names)
        self.device = local_device(num_gpus)
        key = f"teachers.{served.name}.model"
        self.processor = load_processor(served.models[0], self.task, key)
        self.models = [load_model(spec, self.task, 0, key).to(self.device) for spec in served.models]

    def logits(self, folder: Path, positions: np.ndarray, folds: np.ndarray) -> list[np.ndarray]:
        """Compact logits, (H, C_i) fp16 each, of the encoded rows at `positions` (n,) of a split's folder.

        folds: (n,), the model to ask for each row; -1 is the mean of all. TrainingError if one is not finite.
        """
        rows = datasets.load_from_disk(str(folder))
        found: list[np.ndarray] = [np.empty(0)] * len(positions)
        place = {int(p): i for i, p in enumerate(positions)}
        for fold in np.unique(folds):
            models = self.models if fold < 0 else [self.models[fold]]
            try:
                for at, logits in predict(
                    models,
                    self.task,
                    rows,
                    self.processor,
                    self.device,
                    self.served.dtype,
                    self.served.batch_tokens,
                    positions[folds == fold],
                ):
                    for position, row in zip(at, logits, strict=True):
                        found[place[int(position)]] = row
            except ValueError as error:  # compact_logits: NaN or infinite
                mend = "Check its checkpoint, or set logits.dtype=float32"
                raise TrainingError(f"teacher {self.served.name}: {error}. {mend}") from error
        return found
