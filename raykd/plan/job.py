"""A training as a value: everything that its result depends on."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from raykd.common.hashing import digest, fingerprint
from raykd.common.output_files import RESULT, TRAININGS
from raykd.common.own_code import OwnCode
from raykd.common.proof import damage, unreadable
from raykd.common.shared_files import seen
from raykd.config.methods import Method
from raykd.config.models import LoraConfig
from raykd.config.schema import AugmentConfig, ModelConfig, TaskConfig, TrainingConfig
from raykd.data.encoding import Encoded
from raykd.logits import LogitStore, TeacherKey
from raykd.logits.keep import ALL, Keep
from raykd.teachers.serving import ServedTeacher

CARD = "README.md"  # in a model's folder: for people, and not part of the result
# Increase it when a change to the loop, or to a default in the config, changes the results of trainings.
ARITHMETIC = 3


def shown_source(source: str) -> str:
    """A hub id, or the name of a local folder or file without its path, because the model card can be published."""
    return Path(source).name if Path(source).is_absolute() or Path(source).exists() else source


def best_scores(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By split, the metrics of the generation that is a training's result. result: `Job.result`."""
    found: dict[str, dict[str, float]] = result["generations"][result["best"]]
    return found


def model_name(generation: int) -> str:
    """The folder of a generation's model, relative to the training's folder. generation: from 0."""
    return f"generation-{generation + 1}/model"


def _changed(settings: BaseModel, *exclude: str) -> dict[str, Any]:
    """The settings that differ from their defaults, so a new field at its neutral default changes no fingerprint."""
    return settings.model_dump(exclude=set(exclude), exclude_defaults=True)


@dataclass(frozen=True)
class TeacherRef:
    """Where a student gets one teacher's logits.

    key: of the teacher's logits in the store.
    rows: folders of the rows as encoded for this teacher, in the order of the student's own.
    served: for live logits, the teacher.
    folds: for live logits, (N,) the fold whose model answers for each row.
    """

    key: TeacherKey
    rows: tuple[Path, ...]
    served: ServedTeacher | None = None
    folds: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.key.metadata["name"]


def settings_key(key: str) -> str:
    """The config's section with a training's own `training` and `lora`. key: the training's, as in `Job`."""
    return key if key == "student" else f"{key}.recipe"


@dataclass(frozen=True)
class ScoredSplit:
    """A split to score a model on.

    encoded: the model's inputs.
    raw: folder of the user's rows.
    """

    encoded: Encoded
    raw: Path


@dataclass(frozen=True)
class Job:
    """The training of a teacher, a baseline or a student. Picklable; runs on any node that can read `store`.

    What users call a job, their YAML, is a `Config`.

    key: the config's section that it comes from, for error messages: "student", or "teachers." and a name.
    seed: of the initialisation, dropout and the order of rows.
    steps: optimizer steps of each generation.
    train: the encoded training splits.
    row_subset: positions of the raw training rows that are used (a subset, or all but one fold); None: all.
    teachers: whose logits it is distilled from.
    logits: the store of their logits.
    keep: what is kept of their logits.
    live: whether the teachers are queried during the training instead.
    lora: how its model is adapted; None: all weights are trained.
    augment: how rows are changed in every epoch; None: not at all.
    raw_train: with augment, folders of the raw rows, in train's order.
    code: of the user's own that it runs.
    keep_model: whether to keep the trained model and its test scores. Not for a sweep's trials: thousands of models
        would fill the disk, and no choice may depend on test scores.
    metadata: for people and the model card.

    `keep_model`, `metadata`, names and folders are not part of the identity (`fingerprint`).
    """

    name: str
    key: str
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
    keep: Keep = ALL
    live: bool = False
    lora: LoraConfig | None = None
    augment: AugmentConfig | None = None
    raw_train: tuple[Path, ...] = ()
    code: OwnCode = OwnCode()  # noqa: RUF009 (frozen)
    keep_model: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Jobs with equal fingerprints produce the same model (on the same kind of hardware), so only one is run."""
        keep = {"keep": [self.keep.form, self.keep.k]} if self.keep.packed else {}
        return fingerprint(
            {
                **keep,
                "arithmetic": ARITHMETIC,
                "task": _changed(self.task, *self._ignored),
                "labels": self.label_names,
                "model": self.model_digest,
                "seed": self.seed,
                "training": _changed(self.training, "epochs", "steps"),
                "steps": self.steps,
                "workers": self.workers,  # each worker draws its own dropout
                "method": _changed(self.method, "type", "teacher"),  # only its axes; the teachers are below
                "rows": [e.digest for e in (*self.train, self.validation.encoded, self.test.encoded)],
                "examples": None
                if self.row_subset is None
                else digest(self.row_subset.astype(np.int64).tobytes()).hex(),
                "teachers": [t.key.fingerprint for t in self.teachers],
                # Live logits of unchanged rows equal the stored ones, so only augmentation changes the training.
                "augment": _changed(self.augment) if self.augment else None,
            }
            | ({"macro_f1": 2} if self.task.kind == "multi-label-classification" else {})  # of labels that occur
            | ({"compiled": 2} if self.training.compile else {})  # padded for CUDA graphs alone
            | ({"lora": _changed(self.lora)} if self.lora else {})
            | ({"code": self.code.digest} if self.code.modules else {})
        )

    @property
    def _ignored(self) -> list[str]:
        """Settings of the task that make no difference to the training.

        With equal weights it does not matter whether a teacher's value is right. A task of the user's own can use
        `tolerance` for something else. What `long: drop` leaves out is not among the rows, and no other row is cut.
        """
        found = ["tolerance"] if self.method.weighting == "mean" and self.task.type == "regression" else []
        return [*found, "long"] if self.task.long == "drop" else found

    @property
    def folder(self) -> Path:
        return self.store / TRAININGS / self.fingerprint

    @property
    def done(self) -> bool:
        """Whether it has a result, including the model and test scores if they are kept. Checksums are not read."""
        if not (self.folder / RESULT).exists() or self._damage(False):
            return False
        return not self.keep_model or (self._has_model and self._has_test_scores)

    @property
    def _has_test_scores(self) -> bool:
        result = json.loads((self.folder / RESULT).read_text())
        return "test" in best_scores(result)

    @property
    def _has_model(self) -> bool:
        return any(self.folder.glob("generation-*/model/config.json"))

    def damage(self) -> str:
        """Why its result cannot be used; "" if it can. Checks the checksums of all its files."""
        return self._damage(True)

    def _damage(self, checksums: bool) -> str:
        path = self.folder / RESULT
        if reason := unreadable(path):
            return reason
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or "best" not in result:
            return f"{RESULT} does not contain a result"
        models = self.keep_model and self._has_model  # otherwise they were deleted
        if (files := result.get("files")) is not None:
            expected = {name: proof for name, proof in files.items() if models or not name.startswith("generation-")}
            expected = {name: proof for name, proof in expected.items() if not name.endswith(f"/{CARD}")}
            return damage(self.folder, expected, checksums)
        # Results of older versions have no checksums.
        paths = [*self.folder.glob("*.gz"), *self.folder.glob("*.npz")] if checksums else []
        paths += [path for path in self.folder.glob("generation-*/model/*") if checksums and models and path.is_file()]
        return next(filter(None, map(unreadable, paths)), "")

    def result(self) -> dict[str, Any]:
        """The content of `result.json`. `model` is the best model's folder in the store's current location."""
        seen(self.folder / RESULT, lambda: self.done)
        result = json.loads((self.folder / RESULT).read_text())
        return result | {"model": str(self.folder / model_name(result["best"]))}

    def delete_models(self) -> None:
        """Delete its checkpoints, models and the logits of its generations. Scores and predictions stay."""
        for folder in (*self.folder.glob("generation-*"), self.folder / "generations"):
            shutil.rmtree(folder, ignore_errors=True)
