"""How far a language model is from the ensemble of its teachers, from their stored logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raykd.common.late import Late
from raykd.common.ranks import local_device
from raykd.common.row_files import open_rows
from raykd.common.threads import torch_threads
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.logits import StoredLogits
from raykd.logits.keep import Keep
from raykd.models.batching import next_batch
from raykd.models.inputs import input_columns
from raykd.models.loading import dtype_of, load_whole
from raykd.models.opened import open_model
from raykd.models.prediction import ROWS_ON_CPU, autocast
from raykd.tasks import Task, make_task

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_BATCH_TOKENS = 4096  # of a batch, with what is kept of every teacher's logits of each


@dataclass(frozen=True)
class Compared:
    """A model, and the ensemble's logits of the same rows. Picklable.

    key: the config's section that the model comes from, for errors.
    splits: by name, the folder of the rows as encoded for the model, and the teachers' logits of these rows.
    keep: what is kept of these logits.
    precision: "auto", "fp32" or "bf16", as in training.
    threads: of a CPU.
    num_gpus: 0 if it runs on the CPU.
    """

    key: str
    task: TaskConfig
    model: ModelConfig
    splits: Mapping[str, tuple[Path, StoredLogits]]
    keep: Keep
    precision: str
    threads: int
    num_gpus: float


def measure(compared: Compared) -> dict[str, float]:
    """By split, the mean over its tokens of the KL divergence of the model from the uniform ensemble.

    It is in nats, at T = 1. The number of torch's threads is as before afterwards.
    """
    with torch_threads(compared.threads):
        task = make_task(compared.task)
        opened = open_model(compared.model, task, compared.key)
        device, processor = local_device(compared.num_gpus), opened.processor
        model = load_whole(opened, processor, device).eval()
        dtype = dtype_of(compared.precision, device)
        return {
            split: _mean(model, task, processor, rows, stored, compared.keep, device, dtype)
            for split, (rows, stored) in compared.splits.items()
        }


def _mean(
    model: torch.nn.Module,
    task: Task,
    processor: object,
    folder: Path,
    stored: StoredLogits,
    keep: Keep,
    device: torch.device,
    dtype: str,
) -> float:
    from raykd.logits.heads import head_on
    from raykd.models.kept_logits import divergence_from_ensemble

    rows = input_columns(open_rows(folder), task)
    lengths = np.asarray(rows.select_columns("length")[:]["length"])
    order, start, total, tokens = np.argsort(-lengths, kind="stable"), 0, 0.0, 0
    heads = [head_on(store, key, str(device)) for store, key in stored.sources] if keep.form == "hidden" else []
    while start < len(order):
        chosen = next_batch(order, lengths, start, _BATCH_TOKENS, ROWS_ON_CPU)
        start += len(chosen)
        batch = task.collate(rows[chosen], processor)
        assert batch.mask is not None
        exists, classes = batch.mask[..., 0], batch.mask.shape[-1]
        said = torch.from_numpy(stored[chosen])[:, exists].to(device)  # (M, D, F)
        true = task.true_classes(batch)
        inputs = {name: values.to(device) for name, values in batch.inputs.items()}
        with torch.inference_mode(), autocast(device, dtype):
            outputs = model(**inputs)
        # Outside of autocast, which would take the teachers' heads and their mean out of fp32.
        apart = divergence_from_ensemble(outputs, exists, true.to(device), said, classes, keep, heads)
        total, tokens = total + float(apart.double().sum()), tokens + len(apart)
    return total / tokens
