"""Leaves out the rows of language models that are longer than `task.max_length`, where `task.long` is "drop"."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint
from raykd.common.remembered import remembered
from raykd.common.sigterm import ended_at_once
from raykd.config.schema import Config
from raykd.data.source import quiet_datasets
from raykd.data.split import Split
from raykd.models.opened import OpenedModel
from raykd.tasks.common import NUMBER, RowError, Task

log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 1000
_PARALLEL_FROM_ROWS = 20_000  # below this, starting processes takes longer than tokenizing


def without_long_rows(split: Split, model: OpenedModel, config: Config) -> Split:
    """The split without the rows that are too long, and with the others' numbers; the same object if there are none.

    model: any of the experiment's, since all have the same tokens.

    Raises ConfigError if no row is left, or for a row that cannot be encoded.
    """
    facts, task = model.processor_facts, model.task
    own = task.encoding_of(facts.encoding, split.rows.column_names)
    identity = [split.digest, facts.digest, own, task.identity(), version("transformers"), version("tokenizers")]
    long = remembered(config.store, "long", identity, lambda: _long_rows(split, model, config.data.workers))
    if not long:
        return split
    limit, count = task.settings.max_length, len(split.rows)
    if len(long) == count:
        reason = f"all {count:,} rows of data.{split.name} are longer than task.max_length = {limit} tokens"
        raise ConfigError("task.long", "drop", reason, "Raise task.max_length, or truncate them")
    rows = f"{len(long):,} of {count:,} rows are longer than task.max_length = {limit} tokens and left out"
    note = f"data.{split.name}: {rows}"
    log.info("%s", note)
    kept = np.setdiff1d(np.arange(count), long)
    with quiet_datasets():
        left = split.rows.select(kept).add_column(NUMBER, kept.tolist())
    groups = split.groups and tuple(split.groups[i] for i in kept)
    digest = fingerprint([split.digest, "without", long])
    return replace(split, rows=left, ids=split.ids[kept], digest=digest, groups=groups, notes=(*split.notes, note))


def _long_rows(split: Split, model: OpenedModel, workers: int | None) -> list[int]:
    processes = workers or max(1, (os.cpu_count() or 2) // 2)
    settings = {"task": model.task, "processor": model.processor, "name": split.name}
    try:
        with quiet_datasets(), ended_at_once():
            found = split.rows.map(
                _of_batch,
                batched=True,
                batch_size=_ROWS_AT_ONCE,
                with_indices=True,
                remove_columns=split.rows.column_names,
                num_proc=processes if len(split.rows) >= _PARALLEL_FROM_ROWS and processes > 1 else None,
                fn_kwargs=settings,
                keep_in_memory=True,
                load_from_cache_file=False,
                new_fingerprint=fingerprint([split.digest, "long"]),
            )
    except ConfigError as error:
        if error.key != "tokenizer":
            raise
        raise ConfigError(f"{model.key}.tokenizer", error.value, error.reason, error.hint) from None
    return np.flatnonzero(found.with_format("numpy")["long"][:]).tolist()


def _of_batch(
    rows: Mapping[str, list], indices: list[int], task: Task, processor: Any, name: str
) -> dict[str, list[bool]]:
    try:
        return {"long": task.long_rows(dict(rows), processor)}
    except RowError as error:
        raise ConfigError(f"data.{name}", f"row {indices[error.position]}", error.reason, error.hint) from None
