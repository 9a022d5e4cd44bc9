"""A teacher as it serves: one model, or k fold models that act as one. Does not import Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import datasets
import numpy as np

from raykd.common.device_errors import out_of_memory
from raykd.common.errors import TrainingError
from raykd.common.hashing import digest, fingerprint
from raykd.common.late import Late
from raykd.common.ranks import local_device
from raykd.common.shared_files import seen
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.distillation import NotFiniteError
from raykd.logits import LogitStore, TeacherKey
from raykd.logits.keep import ALL, Keep
from raykd.models.adapters import SETTINGS
from raykd.models.inputs import InputRows, open_inputs
from raykd.models.loading import load_whole
from raykd.models.opened import open_model
from raykd.models.prediction import (
    ROWS_ON_GPU,
    Inference,
    limited_tokens,
    pending,
    predict_rows,
    same_outputs,
    usual_tokens,
)
from raykd.tasks import make_task
from raykd.teachers.batch_search import search_batch
from raykd.teachers.compiling import Compiling

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_COMPARED = 16  # rows that are computed both compiled and as they are
_ROUNDING = {"float32": 5e-3, "bfloat16": 5e-2}  # how far these may differ, relatively


@dataclass(frozen=True)
class ServedTeacher:
    """A teacher, and how its logits are computed.

    `key` identifies its logits by content: it has no names or folders, nor `batch_tokens`, `search_batch` and
    `compiled`, which change only how a logit is rounded.

    models: one, or one per fold; a fold's model computes the rows that it was not trained on.
    digests: hash of each model's weights.
    processor, preprocessing: hashes of the tokenizer (or image processor) and of how rows are encoded.
    batch_tokens: limit of a batch, as rows times longest row; with search_batch, one to begin with.
    search_batch: whether the user sets no size. Then a CPU computes smaller batches, and a GPU larger ones if they are
        faster.
    fold_ids: per fold (n, 16) uint8, the sorted ids of the raw rows that this fold's model was not trained on.
    compiled: whether to use torch.compile; "auto": if that pays.
    classes: for each of the task's classes, its index among the model's outputs; () if the order is the same.
    keep: what is kept of its logits.
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
    compiled: bool | Literal["auto"] = False
    classes: tuple[int, ...] = ()
    keep: Keep = ALL
    search_batch: bool = False

    def load(self, num_gpus: float) -> TeacherModel:
        return TeacherModel(self, num_gpus)

    @property
    def key(self) -> TeacherKey:
        weights = self.digests[0]
        if self.fold_ids:
            weights = fingerprint([self.digests, [digest(ids.tobytes()).hex() for ids in self.fold_ids]])
        if self.classes:
            weights = fingerprint([weights, "classes", self.classes])
        dtype = self.keep.in_key(self.dtype)
        return TeacherKey(weights, self.processor, self.preprocessing, dtype, metadata={"name": self.name})

    def fold_of(self, ids: np.ndarray) -> np.ndarray:
        """(N, 16) uint8 raw row ids to (N,) int: the fold whose model was not trained on the row, -1 if in no fold."""
        folds = np.full(len(ids), -1)
        for fold, members in enumerate(self.fold_ids):
            folds[np.isin(_keys(ids), _keys(members))] = fold
        return folds

    def folds_of_rows(self, ids: np.ndarray, rows: datasets.Dataset) -> np.ndarray:
        """(N,) int: `fold_of` each encoded row of a split. ids: of the split's raw rows."""
        if not self.fold_ids:
            return np.full(len(rows), -1)
        return self.fold_of(ids)[np.asarray(rows.select_columns("example")[:]["example"])]


def _keys(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view(f"S{ids.shape[1]}").ravel()


def _in_order(classes: Sequence[int], device: torch.device) -> Callable[..., None]:
    """A forward hook that puts a model's classes into the task's order, so that no other code sees the model's own."""
    order = torch.tensor(list(classes), device=device)  # copied once: each copy would wait for the GPU

    def reorder(model: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        outputs.logits = outputs.logits.index_select(-1, order)

    return reorder


class TeacherModel:
    """The loaded models of one teacher."""

    batch_note = ""  # how large its batches are, once that has been measured
    search_seconds = 0.0  # that measuring this has taken
    compiling = Compiling(False)
    searches = False  # whether it is still to be measured
    alone = False  # whether it has a GPU for itself
    halved = 0  # batches that ran out of memory and were split

    def __init__(self, served: ServedTeacher, num_gpus: float = 0) -> None:
        self.served = served
        self.task = make_task(served.task, served.label_names)
        self.device = local_device(num_gpus)
        key = f"teachers.{served.name}.model"
        for spec in served.models:
            if spec.pretrained and Path(spec.pretrained).is_absolute():  # it can have been trained on another node
                folder = Path(spec.pretrained)
                seen(folder / "config.json", lambda: any((folder / n).exists() for n in ("config.json", SETTINGS)))  # noqa: B023
        opened = [open_model(spec, self.task, key) for spec in served.models]
        self.processor = opened[0].processor
        self.models = [load_whole(model, self.processor, self.device, served.dtype).eval() for model in opened]
        for model in self.models if served.classes else ():
            model.register_forward_hook(_in_order(served.classes, self.device))
        self.compiling = Compiling(served.compiled)
        # By their folders, which are the same for all blocks of a teacher.
        self._opened: dict[tuple[Path, ...], InputRows] = {}
        # A share of a GPU has no memory of its own, and its neighbours come and go.
        self.alone = self.device.type == "cuda" and num_gpus >= 1
        self.searches = served.search_batch and self.alone
        self.batch_tokens = served.batch_tokens
        if served.search_batch:
            self.batch_tokens = min(served.batch_tokens, usual_tokens(self.device))

    def keep_head(self, store: LogitStore) -> None:
        """Write its head to the store, if hidden states are what is kept."""
        if self.served.keep.form == "hidden":
            from raykd.logits.heads import write_head
            from raykd.models.kept_logits import linear_head

            write_head(store, self.served.key, linear_head(self.models[0], f"teachers.{self.served.name}.model"))

    def logits(
        self,
        folders: Sequence[Path],
        positions: np.ndarray,
        folds: np.ndarray,
        left: int = 0,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Sequence[np.ndarray]:
        """Compact logits of a block, (H, C_i) fp16 per row: one array if all have one shape.

        Raises TrainingError if a logit is not finite.

        folders: encoded splits.
        positions: (n,) rows in the concatenation of these splits.
        folds: (n,) which fold's model computes the row; -1 for the mean of all.
        left: rows that are still to be computed, with these.
        on_sent: called when all of the block has been sent to the device, so that the next one can be sent. Not called
            during or after a trial of torch.compile, when a block can be computed again.
        """
        parts = tuple(folders)
        if parts not in self._opened:
            self._opened[parts] = open_inputs(folders, self.task)
        rows = self._opened[parts]
        if self.searches and len(positions) and not self.compiling.trying:
            began = time.monotonic()
            self._search_batch(rows, positions, folds)
            self.search_seconds += time.monotonic() - began
        passes = np.where(folds < 0, len(self.models), 1)
        tokens = float((np.maximum(1, rows.lengths[positions]) * passes).sum())
        with self._named_errors():
            return self.compiling.block(
                lambda: self._block(rows, positions, folds, on_sent if self.compiling.overlaps else None),
                lambda: self._compiled_agree(rows, positions),
                len(positions),
                tokens,
                left,
            )

    def _block(
        self, rows: InputRows, positions: np.ndarray, folds: np.ndarray, on_sent: Callable[[], None] | None
    ) -> Sequence[np.ndarray]:
        logits: list[np.ndarray] = [np.empty(0)] * len(positions)
        every = np.unique(folds)
        for fold in every:
            chosen = np.flatnonzero(folds == fold)
            sent = on_sent if on_sent and fold == every[-1] else lambda: None
            given = self._inference(fold), rows, positions[chosen], self.batch_tokens, self._on_halved, sent
            found = predict_rows(*given)
            if len(every) == 1:
                return found
            for i, row in zip(chosen, found, strict=True):
                logits[i] = row
        return logits

    def _compiled_agree(self, rows: InputRows, positions: np.ndarray) -> bool:
        """Whether its models compute the same when they are compiled, but for rounding: of some rows, and of one."""
        inference, rounding = self._inference(-1), _ROUNDING[self.served.dtype]
        longest = max(1, int(rows.lengths[positions].max()))
        most = limited_tokens(inference, rows, self.batch_tokens)
        several = positions[: max(1, min(_COMPARED, most // longest))]
        return all(
            same_outputs(replace(inference, models=[one]), replace(inference, models=[other]), rows[some], rounding)
            for some in (several, positions[:1])
            for one, other in zip(inference.models, self.models, strict=True)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What it has measured, for the log."""
        return tuple(note for note in (self.batch_note, self.compiling.note) if note)

    @property
    def extra_seconds(self) -> float:
        """That it has spent on more than computing logits."""
        return self.search_seconds + self.compiling.extra_seconds

    def _search_batch(self, rows: InputRows, positions: np.ndarray, folds: np.ndarray) -> None:
        """Measure which batch of the block's rows the GPU computes fastest. Later calls use it.

        Batches are in no key of the store: like a batch that is halved, another one can change a logit's last bits.
        """
        if self.task.predicts_tokens and not self.served.keep.packed:
            return  # `predict` limits the logits of a batch
        fold, count = max(zip(*np.unique(folds, return_counts=True), strict=True), key=lambda pair: pair[1])
        most_rows = min(int(count), ROWS_ON_GPU)  # what one of its models computes of a block
        inference = self._inference(int(fold), trials=False)
        if found := search_batch(inference, rows, positions, self.batch_tokens, most_rows):
            self.searches = False
            self.batch_tokens, self.batch_note = found

    def answer(self, columns: Mapping[str, Any], folds: np.ndarray) -> list[np.ndarray]:
        """`logits` for encoded rows that are passed by value: columns of B values, folds (B,)."""
        logits: list[np.ndarray] = [np.empty(0)] * len(folds)
        for fold in np.unique(folds):
            chosen = np.flatnonzero(folds == fold)
            part = {name: [values[i] for i in chosen] for name, values in columns.items()}
            with self._named_errors():
                for i, row in zip(chosen, self._halving(fold, part), strict=True):
                    logits[i] = row
        return logits

    def _inference(self, fold: int, trials: bool = True) -> Inference:
        """fold: whose model computes; -1: all of them. trials: whether with what a trial has compiled."""
        models = self.compiling.called(self.models) if trials or not self.compiling.auto else self.models
        models = models if fold < 0 else [models[fold]]
        return Inference(models, self.task, self.processor, self.device, self.served.dtype, self.served.keep)

    def _halving(self, fold: int, columns: dict[str, list]) -> Sequence[np.ndarray]:
        count = len(columns["length"])
        try:
            return pending(self._inference(fold, trials=False), columns).get()
        except (RuntimeError, MemoryError) as error:
            if count == 1 or not out_of_memory(error):
                raise
        self.halved += 1
        halves = ({n: v[: count // 2] for n, v in columns.items()}, {n: v[count // 2 :] for n, v in columns.items()})
        return [row for half in halves for row in self._halving(fold, half)]

    def _on_halved(self, tokens: int) -> None:
        self.compiling.on_out_of_memory()
        self.halved += 1
        if self.alone:  # of all later blocks, too, and larger batches of shorter rows are not tried any more
            self.batch_tokens, self.searches = tokens, False

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except NotFiniteError as error:
            lower = self.served.dtype != "float32"
            hint = f"Check its checkpoint{', or set logits.dtype=float32' if lower else ''}"
            raise TrainingError(f"teacher {self.served.name}: {error}. {hint}") from error
