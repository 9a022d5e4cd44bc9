"""A model's raw logits over encoded rows: what teachers serve and what students are scored by."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from raykd.batches import token_batches
from raykd.distillation import compact_logits
from raykd.ranks import Ranks
from raykd.tasks.common import Task


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """bf16 where it is asked for; a no-op in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@torch.inference_mode()
def predict(
    models: Sequence[torch.nn.Module],
    task: Task,
    rows: Dataset,
    processor: Any,
    device: torch.device,
    dtype: str = "float32",
    batch_tokens: int = 16384,
    positions: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yields, a batch at a time, positions (B,) in `rows` and their logits, (H, C_i) fp16 each.

    Several models (the folds of one teacher) give the mean of their logits. They are compact (their
    decision's maximum subtracted), so they are what the store holds.
    Batches depend on the rows alone, so the same rows give the same bytes.
    """
    for model in models:
        model.eval()
    positions = np.arange(len(rows)) if positions is None else positions
    rows = fed_columns(rows, task)
    lengths = np.asarray(rows.select(positions).select_columns("length")[:]["length"])
    for chosen in token_batches(lengths, batch_tokens):
        columns = rows[positions[chosen]]
        batch = task.collate(columns, processor).to(device)
        with autocast(device, dtype):
            raw = [task.decisions(model(**batch.inputs)).float() for model in models]
        values = compact_logits(torch.stack(raw).mean(0), batch.mask).cpu().numpy()
        widths = columns["length"] if task.ragged else [values.shape[-1]] * len(chosen)
        yield positions[chosen], [v[:, :w] for v, w in zip(values, widths, strict=True)]


def fed_columns(rows: Dataset, task: Task) -> Dataset:
    """Without what `collate` does not read: in question answering it is most of a row."""
    wanted = {*task.model_inputs, *task.collate_columns, "labels", "length"}
    return rows.select_columns([name for name in rows.column_names if name in wanted])


def predict_all(
    model: torch.nn.Module, task: Task, rows: Dataset, processor: Any, ranks: Ranks, dtype: str = "float32"
) -> list[np.ndarray]:
    """Every row's logits in order, (H, C_i) fp16 each; the workers share the rows, and all get all."""
    mine = np.arange(ranks.rank, len(rows), ranks.world)
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    part = list(predict([model], task, rows, processor, ranks.device, dtype, positions=mine))
    for pairs in ranks.gather(part):
        for positions, logits in pairs:
            for position, row in zip(positions, logits, strict=True):
                found[position] = row
    return found
