"""What every task says about its rows. One shape for all: H decisions over C classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from raykd.common.errors import UserError
from raykd.common.transfer import to_device
from raykd.config.schema import AugmentConfig

NO_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """What the student's loop and the teachers are fed.

    inputs: what `model(**inputs)` takes, each (B, ...).
    labels: (B, H) int64, the gold class of each decision, -100 where there is none.
    mask: (B, H, C) bool, the classes that are allowed; None means all of them.
    before: (B,) int64, how many positions of padding precede each row's first token; None where padding follows the
        rows. Labels and mask count positions from the row's own first token on either side.
    positions: (B, H) int64, the position in the padded row of the token at which each decision is read; None if a
        decision is not read at one token.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    before: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        inputs = {name: to_device(values, device) for name, values in self.inputs.items()}
        mask = None if self.mask is None else to_device(self.mask, device)
        before = None if self.before is None else to_device(self.before, device)
        positions = None if self.positions is None else to_device(self.positions, device)
        return Batch(inputs, to_device(self.labels, device), mask, before, positions)


@dataclass(frozen=True)
class Evaluation:
    """One split, scored.

    metrics: flat name -> value.
    scores: (examples,) float64, each raw example's share of the primary metric; their mean is that metric.
    predictions: one dict a raw example, JSON-able, with at least "id", "prediction" and "score" (of `scores`);
        where examples depend on one another, also "context", equal for those that do.
    calibration: what was chosen on this split and must be reused on test (QA's answer threshold).
    """

    metrics: dict[str, float]
    scores: np.ndarray
    predictions: list[dict[str, Any]]
    calibration: dict[str, float] = field(default_factory=dict)


class RowError(UserError):
    """One row of a batch cannot be encoded. position: of the row in the batch."""

    def __init__(self, position: int, reason: str, hint: str) -> None:
        self.position, self.reason, self.hint = position, reason, hint
        super().__init__(position, reason, hint)

    def __str__(self) -> str:
        return f"{self.reason}. {self.hint}"


class Task:
    """A task is this class's members, filled in. To add one: a module beside this, an entry in `TASKS`.

    Raw rows are the user's columns under the task's own names (`columns` in the config maps them).
    Encoded rows are what `encode` returns; `raykd.data.loading` adds `row_id`, `input_hash` and `example`
    (the raw row's position in its split).
    """

    primary_metric: str  # the metric that chooses checkpoints and heads the table; higher is better
    metric_names: tuple[str, ...]  # what `evaluate` measures and a checkpoint may be chosen by
    percent: bool = False  # the headline is 0..100, not 0..1
    auto_model: str  # transformers' class, by name
    processor: str  # "tokenizer" or "image_processor"
    columns: tuple[str, ...]  # the raw columns it needs, by the task's own names, inputs only
    optional_columns: tuple[str, ...] = ()  # raw columns that it also takes where there are any
    identity_columns: tuple[str, ...] | None = None  # those that identify a row; None: all of them
    word_columns: tuple[str, ...] = ()  # those of `columns` that hold a list of words instead of a text
    collate_columns: tuple[str, ...] = ()  # what `collate` reads beside model_inputs, labels and length
    group_column: str | None = None  # raw column whose equal values stay together in one fold
    article_column: str | None = None  # raw column that, where the data has it, groups those groups
    token_column: str | None = "input_ids"  # encoded column of token numbers; None: not text
    shape_columns: tuple[str, ...] = ("length",)  # encoded columns that `shapes` reads
    summary_columns: tuple[str, ...] = ("labels",)  # encoded columns that `summarize` reads
    aligned_columns: tuple[str, ...] = ()  # encoded columns in which a teacher's rows must equal the student's
    named_classes: bool = False  # gold labels are classes, numbered by name in `raykd.data.labels`
    label_column: str  # the raw column that holds the gold label
    model_inputs: tuple[str, ...]  # encoded columns that the model is fed, and that `input_hash` covers

    def __init__(self, settings: Any, label_names: Sequence[str] = ()) -> None:
        self.settings = settings  # the config's `task` section (raykd.config.schema.TaskConfig)
        self.label_names = tuple(label_names)

    def preprocessing(self) -> dict[str, Any]:
        """Every setting that changes what the model is fed; part of the logits' key."""
        raise NotImplementedError

    def encoding(self, processor: Any) -> Any:
        """What `encode` does with this processor, JSON-able; another value where the same rows give another result."""
        return 1

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        """Raise ConfigError for a row that cannot be used (a label outside the model's, ...)."""
        raise NotImplementedError

    def check_encoded(self, splits: Mapping[str, tuple[Dataset, Dataset]], processor: Any, key: str) -> None:
        """Raise ConfigError for rows that a processor does not encode as its models need them.

        splits: raw and encoded rows by split.
        key: the processor's, for a message.
        """

    def unmeasurable(self, rows: Dataset) -> dict[str, str]:
        """Why each metric that these raw, labelled rows cannot give is missing, by its name; {} if they give all."""
        return {}

    def augment(self, rows: dict[str, list], rng: np.random.Generator, settings: AugmentConfig) -> dict[str, list]:
        """Raw training rows to raw rows that differ by chance; other columns, and `rows` itself, stay as they are.

        The same state of `rng` and the same rows give the same result.
        """
        raise NotImplementedError

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        """A batch of raw rows to encoded rows. One raw row may give several (windows).

        Returns columns of equal length: every name of `model_inputs` that the processor gives,
        "labels" (list of H ints, all -100 if not labelled), "length" (int: sorts rows for batching),
        "window" (int, 0 for the first of a raw row), "source" (position in `rows` it came from).
        Raises RowError for a row that cannot be encoded.
        """
        raise NotImplementedError

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        """How many decisions H and classes C each encoded row has, (B, 2) int64.

        rows: columns of B values, of which `shape_columns` are read.

        A batch has room for the most decisions and classes of its rows. Padding has no label, and the mask forbids it.
        """
        raise NotImplementedError

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        """Encoded rows (columns of B values) to one padded batch."""
        raise NotImplementedError

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """The model's output object for `batch` to raw logits (B, H, C), aligned with the batch's labels and mask."""
        raise NotImplementedError

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[Any]:
        """What `evaluate` needs of a batch of labelled rows, so that no process holds the logits of a whole split.

        logits: (H, C) floats of each of B rows, up to a constant per decision.
        rows: columns of B values, of which `summary_columns` are read.

        Returns B small values, which workers exchange. A row's value must not depend on the rest of its batch.
        """
        raise NotImplementedError

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        """Score one split.

        summaries: what `summarize` returned for each encoded row, in their order.
        calibration: that of the validation split; None: choose it here.
        """
        raise NotImplementedError
