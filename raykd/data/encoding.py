"""Rows as models are fed them: encoded once, found again by content, opened by path."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import UnidentifiedImageError

from raykd.common.errors import ConfigError
from raykd.common.hashing import DIGEST_BYTES, digest, fingerprint
from raykd.common.row_files import ensure_rows, open_rows
from raykd.data.loading import Split, quiet_datasets
from raykd.models.loading import processor_digest
from raykd.tasks.common import Task

_PARALLEL_FROM_ROWS = 20_000  # below this, starting processes takes longer than tokenizing


@dataclass(frozen=True)
class Encoded:
    """A split as one tokenizer or image processor feeds it to models; on disk, opened by path.

    folder: where `raykd.common.row_files.open_rows` finds the encoded rows.
    digest: hex; the rows, their labels, the processor and the preprocessing.
    """

    folder: Path
    digest: str

    def open(self) -> Dataset:
        return open_rows(self.folder)


def encode(
    split: Split, task: Task, processor: Any, store: Path, workers: int | None, processor_id: str = ""
) -> Encoded:
    """Encode a split once; a second call with the same content finds the first one's result.

    processor_id: the processor's digest, if it is known: that of a large vocabulary takes 0.1 s.
    """
    processor_id = processor_id or processor_digest(processor)
    identity = fingerprint([split.digest, split.labelled, processor_id, task.preprocessing(), 1])
    folder = store / "data" / identity
    processes = workers or max(1, (os.cpu_count() or 2) // 2)
    with quiet_datasets():
        ensure_rows(folder, lambda: _map(split, task, processor, processes, identity))
    return Encoded(folder, identity)


def _map(split: Split, task: Task, processor: Any, processes: int, identity: str) -> Dataset:
    try:
        return split.rows.map(
            _encode_batch,
            batched=True,
            batch_size=1000,
            with_indices=True,
            remove_columns=split.rows.column_names,
            num_proc=processes if len(split.rows) >= _PARALLEL_FROM_ROWS and processes > 1 else None,
            fn_kwargs={
                "task": task,
                "processor": processor,
                "labelled": split.labelled,
                "ids": split.ids,
            },
            new_fingerprint=identity,
            load_from_cache_file=False,
        )
    except UnidentifiedImageError as error:
        reason = "a picture in it cannot be read"
        raise ConfigError(f"data.{split.name}", error, reason, "Mend or drop the rows of such pictures") from None


def keep_raw(split: Split, store: Path) -> Path:
    """Write the raw rows where workers can open them for scoring; returns the folder."""
    folder = store / "data" / f"{split.digest}-raw"
    with quiet_datasets():
        ensure_rows(folder, lambda: split.rows)
    return folder


def _encode_batch(
    rows: dict[str, list], indices: list[int], task: Task, processor: Any, labelled: bool, ids: np.ndarray
) -> dict[str, list]:
    """The task's encoding, with each encoded row's identity beside it."""
    columns = task.encode(rows, processor, labelled)
    examples = [indices[i] for i in columns.pop("source")]
    names = [n for n in task.model_inputs if n in columns]
    columns["example"] = examples
    columns["row_id"] = [
        digest(ids[e].tobytes(), w.to_bytes(4, "little")) for e, w in zip(examples, columns["window"], strict=True)
    ]
    columns["input_hash"] = [
        digest(*(v if isinstance(v, bytes) else np.asarray(v, np.int32).tobytes() for v in values))
        for values in zip(*(columns[n] for n in names), strict=True)
    ]
    return columns


def id_column(rows: Dataset, name: str) -> np.ndarray:
    """A column of 16-byte hashes as (N, 16) uint8."""
    column = rows.select_columns(name).with_format("arrow")[:][name]  # not rows[name], which is 100 times slower
    whole = column.cast(pa.binary(DIGEST_BYTES)).combine_chunks()  # no Python object a row: there may be millions
    values = np.frombuffer(whole.buffers()[1], np.uint8, DIGEST_BYTES * len(whole), DIGEST_BYTES * whole.offset)
    return values.reshape(-1, DIGEST_BYTES)
