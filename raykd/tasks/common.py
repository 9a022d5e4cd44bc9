"""The interface of a task. Its rows have one shape in all tasks: H decisions over C classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import UserError
from raykd.common.own_code import OwnCode
from raykd.common.transfer import to_device
from raykd.config.schema import AugmentConfig

if TYPE_CHECKING:
    import torch

NO_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """A collated batch, for students and teachers.

    inputs: after `to`, the arguments of `model(**inputs)`, (B, ...) each.
    labels: (B, H) int64, the gold class of each decision, -100 for none. If the task predicts values: (B, H) float32,
        NaN for none.
    mask: (B, H, C) bool, the allowed classes; None: all.
    before: (B,) int64, number of padding positions before each row's first token; None if padding follows the rows.
        In both cases, labels and mask count positions from the row's own first token.
    positions: (B, H) int64, the position in the padded row of the token at which each decision is read; None if a
        decision is not read at one token.
    scaling: what `to` does with inputs["pixel_values"] once they are on the device; None: nothing.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    before: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    scaling: Callable[[torch.Tensor], torch.Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, with inputs as models take them."""
        inputs = {name: to_device(values, device) for name, values in self.inputs.items()}
        if self.scaling is not None:
            inputs["pixel_values"] = self.scaling(inputs["pixel_values"])
        mask = None if self.mask is None else _mask_to_device(self.mask, device)
        before = None if self.before is None else to_device(self.before, device)
        positions = None if self.positions is None else to_device(self.positions, device)
        return Batch(inputs, to_device(self.labels, device), mask, before, positions)


def _mask_to_device(mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A mask that is a view over the classes stays one. `to` would copy each of its C times B times H elements."""
    if mask.stride(-1) == 0:
        return to_device(mask[..., :1], device).expand(mask.shape)
    return to_device(mask, device)


@dataclass(frozen=True)
class Evaluation:
    """The scores of one split.

    metrics: value by name.
    scores: (examples,) float64, each raw example's share of the primary metric; their mean is that metric.
    predictions: one JSON-serialisable dict per raw example, with at least "id", "prediction" and "score" (of `scores`).
        If examples depend on each other, also "context", equal for those that do.
    calibration: values that were chosen on this split and must be reused on test (QA's answer threshold).
    """

    metrics: dict[str, float]
    scores: np.ndarray
    predictions: list[dict[str, Any]]
    calibration: dict[str, float] = field(default_factory=dict)


class RowError(UserError):
    """A row that cannot be encoded. position: of the row in its batch."""

    def __init__(self, position: int, reason: str, hint: str) -> None:
        self.position, self.reason, self.hint = position, reason, hint
        super().__init__(position, reason, hint)

    def __str__(self) -> str:
        return f"{self.reason}. {self.hint}"


def refuse_empty(ids: Iterable[Sequence[int]], rows: Iterable[int]) -> None:
    """Raise RowError for a text without a token. Tokenizers that add none of their own give none to an empty text.

    rows: of each text, the position in the batch.
    """
    for found, row in zip(ids, rows, strict=True):
        if not len(found):
            raise RowError(row, "its text has no token", "Drop the row, or give it a text")


NUMBER = "row"  # the column with the rows' positions in the user's split, of rows from which some were left out


def numbers_of(rows: Dataset) -> Sequence[int]:
    """The positions of raw rows in the user's split."""
    return rows[NUMBER][:] if NUMBER in rows.column_names else range(len(rows))


class Task:
    """The base class of tasks. To add a task, write a module in this package and enter its class in `TASKS`; or write a
    module of your own, and name its class in `task.type` (`my_module:MyTask`).

    Raw rows are the user's columns under the task's names (`data.columns` in the config maps them). Encoded rows are
    the result of `encode`, to which `raykd.data.encoding` adds `row_id`, `input_hash` and `example` (the raw row's
    position in its split).
    """

    kind: str = ""  # the name of raykd's own task that this is or derives from; set by `raykd.tasks`
    primary_metric: str  # chooses checkpoints and comes first in tables; `raykd.common.metrics` has its direction
    metric_names: tuple[str, ...]  # metrics of `evaluate` by which checkpoints can be chosen
    percent: bool = False  # the primary metric is 0..100, not 0..1
    share: bool = True  # the primary metric is a share, which reports write in percent; a correlation or a loss is not
    auto_model: str  # name of transformers' class
    architectures: tuple[str, ...] = ()  # ends of the names of its models' classes; (): auto_model without "AutoModel"
    processor: str  # "tokenizer" or "image_processor"
    columns: tuple[str, ...]  # required raw columns, by the task's names, without the label
    optional_columns: tuple[str, ...] = ()  # raw columns that are used if the data has them
    column_choices: tuple[tuple[str, ...], ...] = ()  # of optional columns, the groups of which the data needs one
    identity_columns: tuple[str, ...] | None = None  # raw columns that identify a row; None: all
    made_columns: tuple[str, ...] = ()  # those of `columns` whose missing values are made from the row's content
    word_columns: tuple[str, ...] = ()  # those of `columns` that hold lists of words or texts instead of a text
    message_columns: tuple[str, ...] = ()  # those that hold lists of messages, each with a role and a content
    json_columns: tuple[str, ...] = ()  # those that hold anything, or JSON as a text
    transfer_needs: Mapping[str, str] = {}  # columns that a transfer row cannot lack, and why
    choice_column: str | None = None  # the one of those that holds a row's own choices (`raykd.data.choices`)
    collate_columns: tuple[str, ...] = ()  # columns that `collate` reads besides model_inputs, labels, length
    group_column: str | None = None  # rows with equal values of this raw column depend on each other (`Split.groups`)
    article_column: str | None = None  # optional raw column whose values contain whole groups
    token_column: str | None = "input_ids"  # encoded column of token ids; None: not text
    shape_columns: tuple[str, ...] = ("length",)  # encoded columns that `shapes` reads
    array_columns: tuple[str, ...] = ()  # lists of integers that `collate` gets as arrays; of the class that defines it
    summary_columns: tuple[str, ...] = ("labels",)  # encoded columns that `summarize` reads
    aligned_columns: tuple[str, ...] = ()  # encoded columns that must be equal for teacher and student
    named_classes: bool = False  # labels are classes with names (`raykd.data.labels`)
    label_lists: bool = False  # a raw row has a list of labels instead of one label
    predicts_values: bool = False  # a decision is a value instead of a class (`raykd.distillation.values`)
    problem_type: str | None = None  # transformers' name of the problem, unless a row has one of several classes
    graded_rows: bool = True  # an example's score grades that example alone, from 0 (wrong) to the largest (right)
    predicts_tokens: bool = False  # the classes are the tokens of the tokenizer
    scoring_columns: tuple[str, ...] = ()  # those of optional_columns that only scoring reads; they identify no row
    repeats_shapes: bool = False  # whether batches have few shapes, because `collate` pads to a multiple of `pad_to`
    pad_to: int = 1  # token sequences are padded to a multiple of it
    label_column: str  # the raw column that holds the gold label; "": the inputs are the labels
    model_inputs: tuple[str, ...]  # encoded columns that are the model's inputs; hashed in `input_hash`

    def __init__(self, settings: Any, label_names: Sequence[str] = ()) -> None:
        self.settings = settings  # the config's `task` section (raykd.config.schema.TaskConfig)
        self.label_names = tuple(label_names)

    @property
    def arrays(self) -> tuple[str, ...]:
        """`array_columns` of the class that defines `collate`: in a subclass, another `collate` can expect lists."""
        owner = next(cls for cls in type(self).__mro__ if "collate" in vars(cls))
        return tuple(vars(owner).get("array_columns", ()))

    def preprocessing(self) -> dict[str, Any]:
        """All settings that change the model's inputs; part of the logits' key."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """`preprocessing`, and of a task of the user's own its code."""
        code: OwnCode = getattr(self.settings, "code", OwnCode())
        return self.preprocessing() | ({"code": code.digest} if code.modules else {})

    def encoding(self, processor: Any) -> Any:
        """A JSON-serialisable value that changes if `encode` gives another result for the same rows and processor."""
        return 1

    def encoding_of(self, encoding: Any, columns: Sequence[str]) -> Any:
        """The part of `encoding` that rows with these columns depend on."""
        return encoding

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        """Raise ConfigError for an invalid row, such as one with a label that the model does not have."""
        raise NotImplementedError

    def check_encoded(self, splits: Mapping[str, tuple[Dataset, Dataset]], processor: Any, key: str) -> None:
        """Raise ConfigError if a processor does not encode the rows as its models need them.

        A check that has passed is remembered in the store, so it must not log anything.

        splits: raw and encoded rows by split.
        key: the processor's config key, for messages.
        """

    def check_prompts(self, rows: Dataset, processor: Any, positions: int) -> None:
        """Raise ConfigError if a model has no room for what it is to write after a prompt. For `task.generate`.

        rows: raw, of test.
        positions: of the model; 0: as many as are needed.
        """

    def long_rows(self, rows: dict[str, list], processor: Any) -> list[bool]:
        """Of each raw row, whether `max_length` cuts what is trained on. Only `task.long` = "drop" asks.

        Raises RowError for a row that cannot be encoded.
        """
        raise NotImplementedError

    def notes(self, encoded: Dataset) -> list[str]:
        """What the user should know of a split's encoded rows, such as how many are truncated; one line each."""
        return []

    def _note_of_full_rows(self, lengths: np.ndarray) -> list[str]:
        """The note of rows that are truncated, if there are any. lengths: (N,) tokens of each row."""
        limit = self.settings.max_length
        if not (full := int((lengths >= limit).sum())):
            return []
        return [f"{full:,} of {len(lengths):,} rows reach task.max_length = {limit} tokens; anything beyond is cut off"]

    def unmeasurable(self, rows: Dataset) -> dict[str, str]:
        """Metrics that cannot be measured on these raw, labelled rows, with the reason of each."""
        return {}

    def chance(self, rows: Dataset) -> float | None:
        """The primary metric on these raw, labelled rows of a model that has learnt nothing about their inputs, in the
        metric's unit: the best one answer for all of them. A model at it, or worse, is called that, unless another
        metric is better than in `other_chances`. None: not known.
        """
        return None

    def other_chances(self, rows: Dataset) -> dict[str, float]:
        """The same for other metrics, by name: what answers that ignore the inputs seldom exceed.

        A task with a `chance` of its own has these only if it defines them itself.
        """
        return {}

    def augment(self, rows: dict[str, list], rng: np.random.Generator, settings: AugmentConfig) -> dict[str, list]:
        """Randomly changed copies of raw training rows. Other columns, and `rows` itself, do not change.

        The same state of `rng` and the same rows give the same result.
        """
        raise NotImplementedError

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        """Encode a batch of raw rows. One raw row can become several encoded rows (windows).

        Returns columns of equal length: those of `model_inputs` that the processor returns, and
        - labels: list of H ints, all -100 if not labelled (of values: floats, all NaN);
        - length: int, by which rows are sorted for batching;
        - window: int, 0 for the first of a raw row;
        - source: int, the position of its raw row in `rows`.

        Raises RowError for a row that cannot be encoded.
        """
        raise NotImplementedError

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        """(B, 2) int64: the number of decisions H and of classes C of each encoded row.

        rows: columns of B values; only `shape_columns` are read.

        A batch has the largest H and C of its rows. Padding has no label and is masked.
        """
        raise NotImplementedError

    def tokens_per_length(self, rows: Mapping[str, Sequence]) -> int:
        """How many tokens a `length` of 1 stands for, where batches of teachers and evaluations are limited.

        rows: columns of at least one encoded row.
        """
        return 1

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        """One padded batch of encoded rows.

        rows: columns of B values, lists. Those of `array_columns` can be read-only sequences of arrays instead.
        """
        raise NotImplementedError

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """(B, H, C) raw logits from the model's output for `batch`, aligned with the batch's labels and mask."""
        raise NotImplementedError

    def prompts(self, rows: dict[str, list], processor: Any, follow: bool = False) -> list[list[int]]:
        """The token ids after which a model generates, of each of some raw rows. For `task.generate`.

        follow: of a conversation, all messages; otherwise those before the assistant's last one, which is the answer.
        """
        raise NotImplementedError

    def true_classes(self, batch: Batch) -> torch.Tensor:
        """(B, H) int64, with `predicts_tokens`: the class that came next, of each decision, with or without a label."""
        raise NotImplementedError

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[Any]:
        """What `evaluate` needs of a batch of labelled rows, so that no process holds the logits of a whole split.

        logits: (H, C) floats of each of B rows, a list, or one array if all have one shape; up to a constant per
            decision. With `predicts_tokens`, (H, 6) as in `raykd.distillation.packed.pack_scores`.
        rows: columns of B values, of which `summary_columns` are read.

        Returns B small values, which workers exchange. A row's value must not depend on the rest of its batch.
        """
        raise NotImplementedError

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """What a model predicts of raw examples that need no labels; what `raykd predict` writes.

        logits: (H, C) floats of each encoded row, as for `summarize`.
        encoded: their rows, whose `example` counts from the first row of `raw`.
        calibration: as chosen on the validation split of the model's training; empty if that is not known.

        Returns one dict per raw example, with at least "prediction".
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
