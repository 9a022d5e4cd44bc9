"""Leaves out the rows of language models that are longer than `task.max_length`, where `task.long` is "drop"."""

import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint
from raykd.common.memory import remembered
from raykd.data.loading import Split
from raykd.models.opened import OpenedModel

log = logging.getLogger(__name__)


def without_long_rows(split: Split, model: OpenedModel, store: Path) -> Split:
    """The split without the rows that are too long; the same object if there are none.

    model: any of the experiment's, since all have the same tokens.
    store: the folder `output/store`, which remembers the rows.

    Raises ConfigError if no row is left.
    """
    facts, task = model.processor_facts, model.task
    own = task.encoding_of(facts.encoding, split.rows.column_names)
    settings = task.settings.model_dump(include={"max_length", "generate"})
    identity = [split.name, split.digest, facts.digest, own, task.identity(), settings, version("transformers")]
    long = remembered(store, "long", identity, lambda: task.long_rows(split.rows, split.name, model.processor))
    if not long:
        return split
    limit, count = task.settings.max_length, len(split.rows)
    if len(long) == count:
        reason = f"all {count:,} rows of data.{split.name} are longer than task.max_length = {limit} tokens"
        raise ConfigError("task.long", "drop", reason, "Raise task.max_length, or truncate them")
    text = "data.%s: %s of %s rows are longer than task.max_length = %d tokens and left out"
    log.info(text, split.name, f"{len(long):,}", f"{count:,}", limit)
    kept = np.setdiff1d(np.arange(count), long)
    digest = fingerprint([split.digest, "without", long])
    return replace(split, rows=split.rows.select(kept), ids=split.ids[kept], digest=digest)
