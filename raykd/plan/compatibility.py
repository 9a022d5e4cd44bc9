"""Checks whether models fit the task, the data and each other."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.config.schema import Config
from raykd.data.class_names import some
from raykd.data.encoding import Encoded, id_column
from raykd.data.split import Split
from raykd.models.configs import POSITIONS_AFTER_PADDING
from raykd.models.loading import weight_shapes
from raykd.models.opened import OpenedModel
from raykd.plan.checked import check_once
from raykd.tasks import Task
from raykd.tasks.common import numbers_of

log = logging.getLogger(__name__)
PADDING = 1024  # classes, at most, by which a vocabulary is padded to a round number; phi-2 has 905
_VERSION = 2  # increase it when a check is added, so that all models are checked again


def check_lengths(config: Config, task: Task) -> None:
    """Raise ConfigError for a model's own max_length where it cannot be served."""
    members = {f"teachers.{t.name}": t.max_length for t in config.teachers} | {"student": config.student.max_length}
    for key, length in members.items():
        if length is None or length == config.task.max_length:
            continue
        if task.processor != "tokenizer":
            raise ConfigError(f"{key}.max_length", length, "its rows are pictures, which have no tokens", "Remove it")
        if task.aligned_columns or task.predicts_tokens:
            reason = (
                f"in {config.task.type.replace('-', ' ')} the decisions are tokens or words, and a model whose rows "
            )
            reason += "are cut elsewhere gives no logits of those behind the cut"
            hint = "Remove it, and set task.max_length to a length that all models take"
            raise ConfigError(f"{key}.max_length", length, reason, hint)


def check_config(model: OpenedModel, given: bool, config: Config) -> None:
    """Raise ConfigError if rows are too long for a model, or if the user's values do not fit its config or weights.

    given: whether it is a teacher that is used unchanged. The head of any other model is drawn anew if its files have
        one for another number of classes, for others or in another order, and a line says so.
    """
    task = model.task
    ours = 1 if task.predicts_values else len(task.label_names)
    if not given and model.is_fine_tuned and ours:
        theirs = model.saved_classes
        if theirs != ours:
            counts = f"its head is for {theirs} classes and the task has {ours}"
            if task.predicts_values:
                counts = f"its head has {theirs} outputs and {config.task.type} needs 1"
            log.info("%s = %s: %s, so the head is drawn anew", model.key, model.source, counts)
        elif names := model.other_classes:
            both = f"its head is for {some(names)} and the task's classes are {some(task.label_names)}"
            log.info("%s = %s: %s, so the head is drawn anew", model.key, model.source, both)
    versions = [_VERSION, version("transformers")]
    identity = [
        model.digest,
        given,
        task.auto_model,
        task.processor,
        task.label_names or task.problem_type or (),
        task.settings.max_length,
        *versions,
    ]
    check_once(config.store, identity, lambda: _check_config(model, given, config, task))


def _check_config(model: OpenedModel, given: bool, config: Config, task: Task) -> None:
    _check_values(model, task)
    _check_positions(model, config, task)
    if model.spec.trust_remote_code:
        return  # its class is not one of transformers'
    expected, saved, base = weight_shapes(model)
    for name, shape in saved.items():
        if name in expected and shape != expected[name] and (given or name.startswith(base)):
            raise ConfigError(
                f"{model.key}.config" if model.spec.config else model.key,
                model.spec.config or model.spec.pretrained,
                f"the weights of {model.spec.pretrained} do not fit it: {name} is {shape}, not {expected[name]}",
                "Remove the values that change its shape, use a model without this head, or train from scratch",
            )


def _check_values(model: OpenedModel, task: Task) -> None:
    key, values = f"{model.key}.config", model.spec.config
    for name in {"num_labels", "id2label", "label2id"} & values.keys():
        reason, hint = "the model's classes are the task's", "Remove it, and name the classes in task.labels"
        raise ConfigError(f"{key}.{name}", values[name], reason, hint)
    known = type(model.config)()
    for name in values.keys() - {"attn_implementation"}:  # transformers keeps it under another name
        if not hasattr(known, name) and not model.spec.trust_remote_code:
            near = difflib.get_close_matches(name, known.to_dict(), 1, 0.5)
            hint = f"Did you mean {near[0]}?" if near else "See the model's documentation"
            raise ConfigError(
                f"{key}.{name}", values[name], f"the config of {known.model_type} has no such value", hint
            )


def _check_positions(model: OpenedModel, config: Config, task: Task) -> None:
    """Raise ConfigError if the model has fewer positions than its rows have tokens."""
    loaded = model.config
    positions = getattr(loaded, "max_position_embeddings", None) or 0
    if loaded.model_type in POSITIONS_AFTER_PADDING:
        positions -= (loaded.pad_token_id or 0) + 1
    absolute = getattr(loaded, "position_biased_input", True)  # DeBERTa's are relative
    length = task.settings.max_length or 0
    if task.processor == "tokenizer" and absolute and 0 < positions < length:
        reason, hint = f"{model.key} has {positions} positions", f"Use at most {positions}"
        own = f"{model.key.removesuffix('.model')}.max_length"
        if task.settings.max_length != config.task.max_length:
            raise ConfigError(own, length, reason, hint)
        if not task.aligned_columns and not task.predicts_tokens:
            hint += f", or cut the rows for this model alone: {own}={positions}"
        raise ConfigError("task.max_length", length, reason, hint)


def check_vocabulary(model: OpenedModel, task: Task, splits: Mapping[str, Encoded]) -> None:
    """Raise ConfigError if a token of the data has no embedding. A tokenizer can have more tokens than its model."""
    if task.token_column is None:
        return
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    if size is None:
        return
    if task.predicts_tokens and model.folder and model.spec.tokenizer and size - len(model.processor) > PADDING:
        reason = (
            f"it has {len(model.processor):,} tokens and {model.spec.pretrained} a vocabulary of {size:,}, which is"
        )
        reason += f" more than padding (at most {PADDING:,})"
        raise ConfigError(f"{model.key}.tokenizer", model.spec.tokenizer, reason, "Use the model's own tokenizer")
    if len(model.processor) <= size:
        return
    if task.predicts_tokens:
        reason = f"it has {len(model.processor)} tokens, and the model's vocabulary only {size}"
        source, hint = model.spec.tokenizer_source or model.spec.pretrained, "Use the model's own tokenizer"
        if model.folder is None:
            hint = f"Set {model.key}.config.vocab_size to {len(model.processor)} or more"
        raise ConfigError(f"{model.key}.tokenizer", source, reason, hint)
    for encoded in splits.values():
        tokens = encoded.open().select_columns(task.token_column).with_format("arrow")[:][task.token_column]
        largest = pc.max(tokens.combine_chunks().flatten()).as_py()
        if largest >= size:
            reason = f"token {largest} of its tokenizer has no embedding: the model has {size}"
            source, hint = (
                model.spec.tokenizer_source or model.spec.pretrained,
                "Use the model's own tokenizer, or set its vocab_size",
            )
            raise ConfigError(f"{model.key}.tokenizer", source, reason, hint)


def check_alignment(
    task: Task,
    key: str,
    teacher: OpenedModel,
    theirs: Mapping[str, Encoded],
    student: OpenedModel,
    ours: Mapping[str, Encoded],
    splits: Mapping[str, Split],
) -> None:
    """Raise ConfigError unless teacher and student encode the task's `aligned_columns` equally.

    key: the teacher's config key, named in the message.
    theirs, ours: the encoded splits of the teacher and of the student, by name.
    splits: those that were encoded.
    """
    for split in theirs:
        if theirs[split].digest == ours[split].digest:  # the same rows through the same tokenizer
            continue
        a, b = theirs[split].open(), ours[split].open()
        same = len(a) == len(b) and np.array_equal(id_column(a, "row_id"), id_column(b, "row_id"))
        if task.predicts_tokens and (
            reason := _other_tokens(a, b, teacher.processor, student.processor, numbers_of(splits[split].rows))
        ):
            source = teacher.spec.tokenizer_source or teacher.spec.pretrained
            hint = "Use teachers with the student's tokenizer; others come in a later version"
            raise ConfigError(f"{key}.tokenizer", source, f"in data.{split}, {reason}", hint)
        if not same or any(a[c][:] != b[c][:] for c in task.aligned_columns):
            reason = (
                "its tokenizer splits the text differently from the student's, so their decisions would not line up"
            )
            hint = "Use a teacher and a student with the same tokenizer"
            if (row := _cut_elsewhere(a, b)) is not None:
                reason = f"its tokenizer cuts row {row} of data.{split} into other windows than the student's does"
                hint = "Raise task.max_length, drop rows that are longer, or use the same tokenizer"
            raise ConfigError(key, teacher.spec.pretrained or teacher.spec.tokenizer_source, reason, hint)


def _cut_elsewhere(theirs: Dataset, ours: Dataset) -> int | None:
    """The first row of words that has windows with other words; None if there is none, or if rows are no words."""
    if "first_word" not in theirs.column_names:
        return None
    pairs = [[*zip(rows["example"][:], rows["first_word"][:], strict=True)] for rows in (theirs, ours)]
    return min((row for row, _ in set(pairs[0]) ^ set(pairs[1])), default=None)


def _other_tokens(
    theirs: Dataset, ours: Dataset, their_tokenizer: Any, our_tokenizer: Any, numbers: Sequence[int]
) -> str:
    """The first token of two language models' rows that differs, in words; "" if there is none.

    numbers: of the raw rows, in the user's split.
    """
    if len(their_tokenizer) != len(our_tokenizer):
        return f"its tokenizer has {len(their_tokenizer)} tokens and the student's {len(our_tokenizer)}"
    names = ["example", "input_ids", "positions"]
    tables = [rows.select_columns(names).with_format("arrow")[:] for rows in (theirs, ours)]
    if tables[0].equals(tables[1]):
        return ""
    for theirs_row, ours_row in zip(*(rows.select_columns(names) for rows in (theirs, ours)), strict=False):
        a, b, row = theirs_row["input_ids"], ours_row["input_ids"], numbers[ours_row["example"]]
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            named = [
                f"{tokenizer.convert_ids_to_tokens(ids[at])!r} ({ids[at]})" if at < len(ids) else "nothing"
                for tokenizer, ids in ((their_tokenizer, a), (our_tokenizer, b))
            ]
            return f"token {at} of row {row} is {named[0]}, and the student's {named[1]}"
        if theirs_row != ours_row:
            return f"row {row} has other tokens to be trained on than the student's (see the chat templates)"
    return "it splits its rows into other windows than the student's"
