"""Encoded rows, which are the models' inputs: encoded once, cached by content, opened by path."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image
from PIL.Image import Image as PictureFile

from raykd.common.errors import ConfigError
from raykd.common.hashing import DIGEST_BYTES, digest, fingerprint
from raykd.common.row_files import ensure_rows, open_rows
from raykd.common.sigterm import ended_at_once
from raykd.data.source import quiet_datasets
from raykd.data.split import Split
from raykd.models.identity import processor_digest
from raykd.tasks.common import NUMBER, RowError, Task
from raykd.tasks.pictures import in_eight_bits, open_picture

_ROWS_AT_ONCE = 1000
_PICTURES_AT_ONCE = 16  # decoded, one of 12 megapixels takes 92 MB
_PARALLEL_FROM_ROWS = 20_000  # below this, starting processes takes longer than tokenizing


@dataclass(frozen=True)
class Encoded:
    """A split, encoded by one tokenizer or image processor; on disk.

    folder: of the encoded rows, for `raykd.common.row_files.open_rows`.
    digest: hex hash of the rows, their labels, the processor and the preprocessing.
    """

    folder: Path
    digest: str

    def open(self) -> Dataset:
        return open_rows(self.folder)


def encoded_as(split: Split, task: Task, store: Path, processor_id: str, encoding: Any) -> Encoded:
    """Where a split's encoded rows are, or will be once `encode` has been called.

    processor_id: the digest of the tokenizer or image processor.
    encoding: the task's `encoding` of it.
    """
    own = task.encoding_of(encoding, split.rows.column_names)
    parts = [split.digest, split.labelled, processor_id, task.identity(), own]
    if task.problem_type == "multi_label_classification":  # a row's labels are a vector with a place for each name
        parts.append(len(task.label_names))
    identity = fingerprint(parts)
    return Encoded(store / "data" / identity, identity)


def encode(
    split: Split, task: Task, processor: Any, store: Path, workers: int | None, processor_id: str = ""
) -> Encoded:
    """Encode a split. A second call with the same content returns the first one's result.

    processor: the tokenizer or image processor.
    store: the folder `output/store`.
    workers: processes; None: half of the cores.
    processor_id: the processor's digest, if the caller has it (a large vocabulary takes 0.1 s); "": compute it.
    """
    processor_id = processor_id or processor_digest(processor)
    encoded = encoded_as(split, task, store, processor_id, task.encoding(processor))
    processes = workers or max(1, (os.cpu_count() or 2) // 2)
    with quiet_datasets():
        ensure_rows(encoded.folder, lambda scratch: _map(split, task, processor, processes, encoded.digest, scratch))
    return encoded


def _map(split: Split, task: Task, processor: Any, processes: int, identity: str, scratch: Path) -> Dataset:
    rows = split.rows
    pictures = {role: feature for role, feature in rows.features.items() if isinstance(feature, Image)}
    for role in pictures:  # decoded one by one later, so that an error names its row
        rows = rows.cast_column(role, Image(decode=False))
    with ended_at_once():
        return rows.map(
            _encode_batch,
            batched=True,
            batch_size=_PICTURES_AT_ONCE if pictures else _ROWS_AT_ONCE,
            with_indices=True,
            remove_columns=rows.column_names,
            num_proc=processes if len(rows) >= _PARALLEL_FROM_ROWS and processes > 1 else None,
            fn_kwargs={
                "task": task,
                "processor": processor,
                "name": split.name,
                "labelled": split.labelled,
                "ids": split.ids,
                "modes": {role: feature.mode for role, feature in pictures.items()},
            },
            new_fingerprint=identity,
            load_from_cache_file=False,
            # Not in the cache of datasets, where another driver could write the same file and nothing would delete it.
            cache_file_name=str(scratch / "encoded.arrow"),
        )


def keep_raw(split: Split, store: Path) -> Path:
    """Write the raw rows to the store, so that workers can open them for scoring; returns the folder."""
    folder = store / "data" / f"{split.digest}-raw"
    with quiet_datasets():
        ensure_rows(folder, lambda scratch: split.rows)
    return folder


def _encode_batch(
    rows: Mapping[str, list],
    indices: list[int],
    task: Task,
    processor: Any,
    name: str,
    labelled: bool,
    ids: np.ndarray,
    modes: Mapping[str, str | None],
) -> dict[str, list]:
    """The task's encoding of some rows, with the hashes that identify each encoded row.

    indices: the rows' positions in the split.
    name: the split's.
    ids: (N, 16) uint8 of the whole split's rows.
    modes: for each column of pictures, the colour mode that the data set declares, if any.
    """
    raw = dict(rows)
    for role, mode in modes.items():
        raw[role] = [_opened(picture, mode, name, row) for picture, row in zip(raw[role], indices, strict=True)]
    try:
        columns = task.encode(raw, processor, labelled)
    except RowError as error:
        row = rows.get(NUMBER, indices)[error.position]
        if files := _names(rows, error.position, modes):
            raise ConfigError(f"data.{name}", files, f"row {row}: {error.reason}", error.hint) from None
        raise ConfigError(f"data.{name}", f"row {row}", error.reason, error.hint) from None
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


def _opened(stored: dict[str, Any], mode: str | None, split: str, row: int) -> PictureFile:
    picture = open_picture(stored, split, row)
    if not mode:
        return picture
    try:
        return in_eight_bits(picture).convert(mode)
    except ValueError as error:
        hint = "Save it as RGB or grey with 8 bits, or as grey with 16"
        raise ConfigError(f"data.{split}", stored["path"] or f"row {row}", f"row {row}: {error}", hint) from None


def _names(rows: Mapping[str, list], position: int, modes: Mapping[str, str | None]) -> str:
    """The file names of a row's pictures, if the data has them."""
    return ", ".join(path for role in modes if (path := rows[role][position]["path"]))


def id_column(rows: Dataset, name: str) -> np.ndarray:
    """A column of 16-byte hashes as (N, 16) uint8."""
    column = rows.select_columns(name).with_format("arrow")[:][name]  # not rows[name], which is 100 times slower
    whole = column.cast(pa.binary(DIGEST_BYTES)).combine_chunks()  # no Python object per row: there can be millions
    values = np.frombuffer(whole.buffers()[1], np.uint8, DIGEST_BYTES * len(whole), DIGEST_BYTES * whole.offset)
    return values.reshape(-1, DIGEST_BYTES)
