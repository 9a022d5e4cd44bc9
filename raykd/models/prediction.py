"""A model's raw logits over encoded rows: what teachers serve and what students are scored by."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from raykd.common.ranks import DistContext
from raykd.common.row_files import open_rows
from raykd.common.transfer import ToHost
from raykd.distillation import compact_logits, compact_unchecked
from raykd.models.batching import next_batch
from raykd.tasks.common import Task

log = logging.getLogger(__name__)
BATCH_TOKENS = 16384
ROWS_ON_CPU, ROWS_ON_GPU = 128, 1024  # in a batch, at most; a picture is one token of the budget


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """bf16 where it is asked for; a no-op in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


class PendingLogits:
    """The logits of B encoded rows, which a GPU may still be computing. `get` waits for them.

    (H_i, C_i) fp16 each; several models (a teacher's folds) give the mean of theirs. They are compact (their
    decision's maximum subtracted), so they are what the store holds.
    """

    @torch.inference_mode()
    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        task: Task,
        columns: Mapping[str, Any],
        processor: Any,
        device: torch.device,
        dtype: str,
    ) -> None:
        batch = task.collate(dict(columns), processor).to(device)
        with autocast(device, dtype):
            raw = [task.decisions(model(**batch.inputs), batch).float() for model in models]
        self._mean, self._mask = torch.stack(raw).mean(0), batch.mask
        compact, finite = compact_unchecked(self._mean, self._mask)
        self._compact, self._finite = ToHost(compact), ToHost(finite)
        self._shapes = task.shapes(columns)

    def get(self) -> list[np.ndarray]:
        """Raises NotFiniteError, naming the place, if a logit is not finite."""
        values = self._compact.get().numpy()
        if not self._finite.get():
            compact_logits(self._mean, self._mask)  # says where
        if self._mean.is_cuda:
            values = values.copy()  # pinned memory is no place to keep them
        return [v[:h, :c] for v, (h, c) in zip(values, self._shapes, strict=True)]


def predict(
    models: Sequence[torch.nn.Module],
    task: Task,
    rows: Dataset,
    processor: Any,
    device: torch.device,
    dtype: str = "float32",
    batch_tokens: int = BATCH_TOKENS,
    positions: np.ndarray | None = None,
    on_halved: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yields, a batch at a time, positions (B,) in `rows` and their logits as `PendingLogits` gives them.

    A GPU is given the next batch before the last one's logits are read, so that it does not wait for the host.
    Batches depend on the rows and the kind of device alone, so the same rows give the same bytes; but a batch
    that memory has no room for is halved, and so are those after it (`on_halved` hears how many rows are left):
    there the logits may differ in their last bits.
    """
    for model in models:
        model.eval()
    positions = np.arange(len(rows)) if positions is None else positions
    rows = fed_columns(rows, task)
    lengths = np.asarray(rows.select(positions).select_columns("length")[:]["length"])
    order, start = np.argsort(-lengths, kind="stable"), 0
    most = ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_GPU
    launched: deque[tuple[np.ndarray, PendingLogits]] = deque()
    while start < len(order):  # longest first: what does not fit into memory shows at once
        chosen = next_batch(order, lengths, start, batch_tokens, most)
        batch = None
        try:
            batch = PendingLogits(models, task, rows[positions[chosen]], processor, device, dtype)
        except (RuntimeError, MemoryError) as error:  # torch's own OutOfMemoryError is a RuntimeError
            if len(chosen) == 1 or not out_of_memory(error):
                raise
            most = len(chosen) // 2
            log.warning("out of memory with %d rows of %d: going on with %d", len(chosen), lengths[chosen[0]], most)
            on_halved(most)
        if batch is None:  # outside of the handler, whose traceback holds what is to be freed
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start += len(chosen)
        launched.append((positions[chosen], batch))
        if len(launched) > 1 or device.type == "cpu":
            at, first = launched.popleft()
            yield at, first.get()
    for at, last in launched:
        yield at, last.get()


def out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()  # the CPU's allocator


def fed_columns(rows: Dataset, task: Task) -> Dataset:
    """Without what neither `collate` nor `shapes` reads: in question answering it is most of a row."""
    wanted = {*task.model_inputs, *task.collate_columns, *task.shape_columns, "labels", "length"}
    found = [name for name in rows.column_names if name in wanted]
    return rows if found == rows.column_names else rows.select_columns(found)


def open_fed(folders: Sequence[Path], task: Task) -> Dataset:
    """The encoded rows of these folders, one after the other, with the columns that `collate` reads."""
    return fed_columns(concatenate_datasets([open_rows(folder) for folder in folders]), task)


def predict_all(
    model: torch.nn.Module,
    task: Task,
    rows: Dataset,
    processor: Any,
    ranks: DistContext,
    dtype: str = "float32",
    name: str = "predictions",
) -> list[np.ndarray]:
    """Every row's logits in order, (H_i, C_i) fp16 each; the workers share the rows, and all get all.

    What fails on one worker, such as a logit that is not finite, is raised on all.
    """
    mine = np.arange(ranks.rank, len(rows), ranks.world)
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for pairs in ranks.each(
        lambda: list(predict([model], task, rows, processor, ranks.device, dtype, positions=mine)), name
    ):
        for positions, logits in pairs:
            for position, row in zip(positions, logits, strict=True):
                found[position] = row
    return found
