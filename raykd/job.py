"""One training, as a value: everything that its result depends on, and nothing else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raykd.config import ModelConfig, StudentConfig, TaskConfig, TeacherConfig, TrainingConfig
from raykd.encoding import Encoded
from raykd.hashing import digest, fingerprint
from raykd.logits.store import TeacherKey
from raykd.methods import Method

_ARITHMETIC = 1  # raise it when a change to the loop changes what a training gives


@dataclass(frozen=True)
class StoredTeacher:
    """Where a student finds one teacher's logits.

    rows: the encoded folders, as that teacher was fed them, in the order of the student's own.
    """

    key: TeacherKey
    rows: tuple[Path, ...]


@dataclass(frozen=True)
class ScoredSplit:
    """A split that a model is scored on: as it is fed, and as the user gave it."""

    encoded: Encoded
    raw: Path


@dataclass(frozen=True)
class Job:
    """A teacher's, the baseline's or the student's training. Picklable; runs anywhere that sees `store`.

    examples: positions of the raw training rows that are used (a subset, or all but one fold), or None.
    about: for people and the model card; no part of the identity.
    """

    name: str
    key: str  # the config's section that it comes from, for errors
    store: Path
    task: TaskConfig
    label_names: tuple[str, ...]
    model: ModelConfig
    model_digest: str
    seed: int
    training: TrainingConfig
    steps: int
    method: Method
    train: tuple[Encoded, ...]
    validation: ScoredSplit
    test: ScoredSplit
    examples: np.ndarray | None = None
    workers: int = 1
    teachers: tuple[StoredTeacher, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Two jobs with the same one give the same model (on the same kind of hardware): the second is not run."""
        return fingerprint(
            {
                "arithmetic": _ARITHMETIC,
                "task": self.task.model_dump(),
                "labels": self.label_names,
                "model": self.model_digest,
                "seed": self.seed,
                "training": self.training.model_dump(exclude={"epochs", "steps"}),
                "steps": self.steps,
                "workers": self.workers,  # each draws its own dropout
                "method": self.method.model_dump(exclude={"type", "teacher"}),  # its axes; the teachers are below
                "rows": [e.digest for e in (*self.train, self.validation.encoded, self.test.encoded)],
                "examples": None if self.examples is None else digest(self.examples.astype(np.int64).tobytes()).hex(),
                "teachers": [t.key.fingerprint for t in self.teachers],
            }
        )

    @property
    def folder(self) -> Path:
        return self.store / "trainings" / self.fingerprint


@dataclass(frozen=True)
class Resources:
    """What one training holds while it runs."""

    workers: int
    num_cpus: float
    num_gpus: float

    @classmethod
    def of(cls, member: StudentConfig | TeacherConfig, cluster_gpus: float) -> "Resources":
        gpus = member.num_gpus if member.num_gpus is not None else float(cluster_gpus > 0)
        workers = member.workers if isinstance(member, StudentConfig) else 1
        return cls(workers, member.num_cpus, gpus)
