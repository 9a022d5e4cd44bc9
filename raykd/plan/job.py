"""One training, as a value: everything that its result depends on, and nothing else."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from raykd.common.hashing import digest, fingerprint
from raykd.common.proof import damage, unreadable
from raykd.common.shared_files import seen
from raykd.config.methods import Method
from raykd.config.schema import AugmentConfig, ModelConfig, TaskConfig, TrainingConfig
from raykd.data.encoding import Encoded
from raykd.logits import LogitStore, TeacherKey
from raykd.teachers.serving import ServedTeacher

RESULT = "result.json"  # in a training's folder; written last
# Raise it when a change to the loop, or to a default in the config, changes what a training gives.
ARITHMETIC = 3


def shown_source(source: str) -> str:
    """A hub id as it is; of a local folder or file only the name, for the card travels with the model."""
    return Path(source).name if Path(source).is_absolute() or Path(source).exists() else source


def model_name(generation: int) -> str:
    """Where in a training's folder the model of a generation is, the first one being 0."""
    return f"generation-{generation + 1}/model"


def _changed(settings: BaseModel, *exclude: str) -> dict[str, Any]:
    """The settings that differ from their defaults, so a new field at its neutral default changes no fingerprint."""
    return settings.model_dump(exclude=set(exclude), exclude_defaults=True)


@dataclass(frozen=True)
class TeacherRef:
    """Where a student finds one teacher's logits.

    rows: the encoded folders, as that teacher was fed them, in the order of the student's own.
    served, folds: for live logits, what the teacher is, and (N,) which fold's model to ask for each row.
    """

    key: TeacherKey
    rows: tuple[Path, ...]
    served: ServedTeacher | None = None
    folds: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.key.metadata["name"]


@dataclass(frozen=True)
class ScoredSplit:
    """A split that a model is scored on: as it is fed, and as the user gave it."""

    encoded: Encoded
    raw: Path


@dataclass(frozen=True)
class Job:
    """A teacher's, the baseline's or the student's training. Picklable; runs anywhere that sees `store`.

    row_subset: positions of the raw training rows that are used (a subset, or all but one fold), or None.
    augment, raw_train: how rows are changed every epoch, and the raw ones that this starts from, in train's order.
    live: teachers are asked while it trains. logits: where their stored answers are.
    keep: whether the trained model and its test scores are wanted. A sweep's trials need neither: thousands of models
    would fill any disk, and test scores choose nothing.
    metadata: for people and the model card; no part of the identity, as keep is none.
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
    row_subset: np.ndarray | None = None
    workers: int = 1
    teachers: tuple[TeacherRef, ...] = ()
    logits: LogitStore = LogitStore("/")  # noqa: RUF009 (frozen)
    live: bool = False
    augment: AugmentConfig | None = None
    raw_train: tuple[Path, ...] = ()
    keep: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Two jobs with the same one give the same model (on the same kind of hardware): the second is not run."""
        return fingerprint(
            {
                "arithmetic": ARITHMETIC,
                "task": _changed(self.task),
                "labels": self.label_names,
                "model": self.model_digest,
                "seed": self.seed,
                "training": _changed(self.training, "epochs", "steps"),
                "steps": self.steps,
                "workers": self.workers,  # each draws its own dropout
                "method": _changed(self.method, "type", "teacher"),  # its axes; the teachers are below
                "rows": [e.digest for e in (*self.train, self.validation.encoded, self.test.encoded)],
                "examples": None
                if self.row_subset is None
                else digest(self.row_subset.astype(np.int64).tobytes()).hex(),
                "teachers": [t.key.fingerprint for t in self.teachers],
                # Live logits of unchanged rows are the stored ones: only changed rows make it another training.
                "augment": _changed(self.augment) if self.augment else None,
            }
        )

    @property
    def folder(self) -> Path:
        return self.store / "trainings" / self.fingerprint

    @property
    def done(self) -> bool:
        """Whether its result is there, with model and test scores if they are wanted. Checksums are for `damage`."""
        if not (self.folder / RESULT).exists() or self._damage(False):
            return False
        return not self.keep or (self._has_model and self._has_test_scores)

    @property
    def _has_test_scores(self) -> bool:
        result = json.loads((self.folder / RESULT).read_text())
        return "test" in result["generations"][result["best"]]

    @property
    def _has_model(self) -> bool:
        return any(self.folder.glob("generation-*/model/config.json"))

    def damage(self) -> str:
        """Why the result that is there cannot be used; "" if it can. Reads the checksums of all that belongs to it."""
        return self._damage(True)

    def _damage(self, checksums: bool) -> str:
        path = self.folder / RESULT
        if reason := unreadable(path):
            return reason
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or "best" not in result:
            return f"{RESULT} holds no result"
        models = self.keep and self._has_model  # else they were dropped
        if (files := result.get("files")) is not None:
            wanted = {name: about for name, about in files.items() if models or not name.startswith("generation-")}
            return damage(self.folder, wanted, checksums)
        # An older raykd's results have no proof.
        found = [*self.folder.glob("*.gz"), *self.folder.glob("*.npz")] if checksums else []
        found += [path for path in self.folder.glob("generation-*/model/*") if checksums and models and path.is_file()]
        return next(filter(None, map(unreadable, found)), "")

    def result(self) -> dict[str, Any]:
        """What `result.json` says. `model` is the folder of the best model, wherever the store is now."""
        seen(self.folder / RESULT, lambda: self.done)
        result = json.loads((self.folder / RESULT).read_text())
        return result | {"model": str(self.folder / model_name(result["best"]))}

    def delete_models(self) -> None:
        """Its checkpoints, models and own generations' logits; its scores and predictions stay."""
        for folder in (*self.folder.glob("generation-*"), self.folder / "generations"):
            shutil.rmtree(folder, ignore_errors=True)
