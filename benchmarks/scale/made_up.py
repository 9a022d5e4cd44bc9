"""Any number of raw and encoded rows and their teachers, made quickly and in raykd's formats."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import WORDS, electra, save_tokenizer  # type: ignore[import-not-found]

from raykd.common.row_files import save_rows
from raykd.config.schema import TaskConfig
from raykd.data.encoding import Encoded
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.serving import ServedTeacher

BLOCK_ROWS = 1024  # rows per block, by default


def text_job(folder: Path, source: Path, kind: str) -> dict[str, Any]:
    model = {"config": electra(), "tokenizer": str(save_tokenizer(folder / "tokenizer"))}
    task: dict[str, Any] = {"type": kind, "max_length": 32}
    if kind == "text-classification":
        task["labels"] = ["bad", "good"]
    return {
        "name": "rows",
        "output": str(folder / "runs"),
        "task": task,
        "data": {"source": str(source), "train": "train[64:]", "validation": "train[:32]", "test": "train[32:64]"},
        "training": {"steps": 1},
        "teachers": [{"name": "a", "model": model, "recipe": {"seed": 1}}],
        "student": {"model": model},
    }


def write_texts(folder: Path, rows: int) -> Path:
    """Distinct sentences of ten words, 55 characters."""
    words = np.array(WORDS)[np.random.default_rng(0).integers(0, len(WORDS), (rows, 9))]
    texts = [f"{' '.join(w)} {i:08d}" for i, w in enumerate(words)]
    return _written(folder, {"text": texts, "label": np.arange(rows) % 2})


def write_questions(folder: Path, rows: int) -> Path:
    """Questions in SQuAD's format and sizes: contexts of 750 characters, five questions on each."""
    rng = np.random.default_rng(0)
    contexts = [f"{i:08d} {' '.join(rng.choice(WORDS, 150))}"[:750] for i in range(rows // 5 + 1)]
    table = {
        "id": [f"q{i}" for i in range(rows)],
        "title": [f"t{i // 50}" for i in range(rows)],
        "context": [contexts[i // 5] for i in range(rows)],
        "question": [f"where does {i} live , who is it and what does it do there ?" for i in range(rows)],
        "answers": [{"text": [contexts[i // 5][:8]], "answer_start": [0]} for i in range(rows)],
    }
    return _written(folder, table)


def _written(folder: Path, table: Mapping[str, Any]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table(dict(table)), folder / "train.parquet")
    return folder


def made_encoded(folder: Path, rows: int) -> Encoded:
    """Encoded short texts of 12 tokens, with random row ids and input hashes."""
    rng, step = np.random.default_rng(rows), 100_000
    path = folder / f"encoded-{rows}"

    def flat(values: np.ndarray, width: int, kind: Any) -> pa.Array:
        offsets = pa.array(np.arange(0, len(values) + 1, width, dtype=np.int32))
        if kind is pa.binary():
            buffers = [None, offsets.buffers()[1], pa.py_buffer(values)]
            return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)
        return pa.ListArray.from_arrays(offsets, pa.array(values))

    tables = []
    for start in range(0, rows, step):
        n = min(step, rows - start)
        tables.append(
            pa.table(
                {
                    "input_ids": flat(rng.integers(0, 60, 12 * n, dtype=np.int32), 12, None),
                    "labels": flat(rng.integers(0, 2, n), 1, None),
                    "length": np.full(n, 12, np.int64),
                    "window": np.zeros(n, np.int64),
                    "example": np.arange(start, start + n),
                    "row_id": flat(rng.integers(0, 256, 16 * n, dtype=np.uint8), 16, pa.binary()),
                    "input_hash": flat(rng.integers(0, 256, 16 * n, dtype=np.uint8), 16, pa.binary()),
                }
            )
        )
    datasets.disable_progress_bars()
    save_rows(datasets.Dataset(pa.concat_tables(tables)), path)
    return Encoded(path, str(rows))


def served(name: str = "a", kind: type[ServedTeacher] = ServedTeacher, **more: Any) -> Any:
    task = TaskConfig.model_validate({"type": "text-classification", "labels": ["bad", "good"]})
    about: dict[str, Any] = {
        "task": task,
        "label_names": ("bad", "good"),
        "models": (),
        "digests": (name,),
        "batch_tokens": 1,
    }
    return kind(name=name, processor="p", preprocessing="s", dtype="float32", **about, **more)


def teacher_work(encoded: Encoded, rows: int, replicas: int = 1, teacher: ServedTeacher | None = None) -> TeacherWork:
    config: Any = SimpleNamespace(
        name="a", replicas=replicas, num_cpus=0.01, num_gpus=0.0, accelerator=None, node_labels={}, placement="pack"
    )
    split: Any = SimpleNamespace(ids=np.zeros((0, 16), np.uint8))  # of raw rows, which only folds need
    order = np.random.default_rng(0).permutation(rows)
    return TeacherWork(config, teacher or served(), {"train": (split, encoded)}, 1, order)
