"""Computes a model's raw logits of encoded rows, which teachers serve and students are scored on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raykd.common.device_errors import out_of_memory
from raykd.common.late import Late
from raykd.common.transfer import ToHost
from raykd.logits.keep import ALL, Keep
from raykd.models.batching import next_batch
from raykd.models.inputs import InputRows
from raykd.tasks.common import Task

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


log = logging.getLogger(__name__)
BATCH_TOKENS = 16384
TOKENS_ON_CPU = 1024  # larger batches take up to twice as long for each row there: benchmarks/cpu_batches.py
LARGEST_LOGITS = 2**27  # of a language model, at most in a batch: half a gigabyte in fp32
ROWS_ON_CPU, ROWS_ON_GPU = 128, 8192  # maximum in a batch


def usual_tokens(device: torch.device) -> int:
    """Maximum number of tokens in a batch, where the user sets none."""
    return TOKENS_ON_CPU if device.type == "cpu" else BATCH_TOKENS


def limited_tokens(inference: Inference, rows: InputRows, batch_tokens: int) -> int:
    """The maximum number of tokens in a batch, also by the size of its logits where classes are tokens."""
    if inference.task.predicts_tokens and not inference.keep.packed and len(rows):
        return min(batch_tokens, LARGEST_LOGITS // rows[np.zeros(1, int)]["vocabulary"][0])
    return batch_tokens


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Autocast to bf16 if `dtype` is "bfloat16", otherwise a no-op."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@dataclass(frozen=True)
class Inference:
    """Models that compute logits together, and how.

    models: several (a teacher's folds) give the mean of their logits.
    device: where the models are.
    dtype: of the forward pass, "float32" or "bfloat16".
    keep: what is kept of the logits.
    """

    models: Sequence[torch.nn.Module]
    task: Task
    processor: Any
    device: torch.device
    dtype: str = "float32"
    keep: Keep = ALL


class PendingLogits:
    """The logits of B encoded rows, which a GPU can still be computing; `get` waits for them.

    (H_i, C_i) fp16 for each row. The maximum of each decision is subtracted, as in the store.
    """

    def __init__(self, inference: Inference, columns: Mapping[str, Any]) -> None:
        from raykd.distillation.compact import compact_unchecked

        task, device = inference.task, inference.device
        with torch.inference_mode():
            batch = task.collate(dict(columns), inference.processor).to(device)
            with autocast(device, inference.dtype):
                raw = [task.decisions(model(**batch.inputs), batch).float() for model in inference.models]
            self._mean, self._mask = torch.stack(raw).mean(0), batch.mask
            compact, finite = compact_unchecked(self._mean, self._mask)
            self._compact, self._finite = ToHost(compact), ToHost(finite)
        self._shapes = task.shapes(columns)

    def get(self) -> Sequence[np.ndarray]:
        """The logits of each row. Raises NotFiniteError, naming the position, if a logit is not finite."""
        values = self._compact.get().numpy()
        if not self._finite.get():
            from raykd.distillation.compact import compact_logits

            compact_logits(self._mean, self._mask)  # raises an error that names the position
        if self._mean.is_cuda:
            values = values.copy()  # pinned memory is scarce
        if (self._shapes == values.shape[1:]).all():
            return cast(Sequence[np.ndarray], values)  # one array instead of B, so that rows need no Python object
        return [v[:h, :c] for v, (h, c) in zip(values, self._shapes.tolist(), strict=True)]


class PendingPacked:
    """What is kept of the decisions of B encoded rows, as `PendingLogits`: (H_i, F) fp16 for each row.

    Only for tasks whose classes are a vocabulary. Prompts and padding cost no logits, and the logits of a whole batch
    never exist at once.
    """

    def __init__(self, inference: Inference, columns: Mapping[str, Any]) -> None:
        from raykd.models.kept_logits import pack_unchecked

        task, device = inference.task, inference.device
        with torch.inference_mode():
            batch = task.collate(dict(columns), inference.processor)
            assert batch.mask is not None
            exists, classes = batch.mask[..., 0], batch.mask.shape[-1]
            self._counts = exists.sum(1).tolist()
            batch = replace(batch, mask=None).to(device)  # the mask is a view of a large tensor that nobody needs
            with autocast(device, inference.dtype):
                outputs = [model(**batch.inputs) for model in inference.models]
            self._packed = ToHost(pack_unchecked(outputs, exists, task.true_classes(batch), classes, inference.keep))

    def get(self) -> Sequence[np.ndarray]:
        """(H_i, F) fp16 of each row. Raises NotFiniteError if a logit is not finite."""
        from raykd.distillation.packed import check_finite

        packed = self._packed.get()
        check_finite(packed)
        return np.split(packed.numpy().copy(), np.cumsum(self._counts)[:-1])


def pending(inference: Inference, columns: Mapping[str, Any]) -> PendingLogits | PendingPacked:
    """The logits of B encoded rows, or what is kept of them."""
    return (PendingPacked if inference.keep.packed else PendingLogits)(inference, columns)


def same_outputs(one: Inference, other: Inference, columns: Mapping[str, Any], rounding: float) -> bool:
    """Whether two ways to compute B encoded rows differ by rounding alone: the logits, or a language model's states.

    rounding: the most by which a logit x may differ, relative to 1 + |x|, or a state, relative to its norm.
    """
    if not one.keep.packed:
        found, expected = (PendingLogits(each, columns).get() for each in (one, other))
        return all(np.allclose(a, b, rtol=rounding, atol=rounding) for a, b in zip(found, expected, strict=True))
    a, b = _states(one, columns), _states(other, columns)
    return bool(((a - b).norm(dim=-1) <= rounding * b.norm(dim=-1)).all())


def _states(inference: Inference, columns: Mapping[str, Any]) -> torch.Tensor:
    """(D, d) fp32, a language model's states at the D decisions of B encoded rows."""
    with torch.inference_mode():
        batch = inference.task.collate(dict(columns), inference.processor)
        assert batch.mask is not None
        exists, batch = batch.mask[..., 0], replace(batch, mask=None).to(inference.device)
        with autocast(inference.device, inference.dtype):
            states = inference.models[0](**batch.inputs).states
        return states[exists.to(states.device)].float()


def predict(
    inference: Inference,
    rows: InputRows,
    positions: np.ndarray | None = None,
    batch_tokens: int | None = None,
    on_halved: Callable[[int], None] = lambda tokens: None,
    on_sent: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Yield batch after batch: positions (B,) in `rows`, and the logits of these rows as in `PendingLogits`.

    positions: (N,) of the rows to compute; None: all.
    batch_tokens: maximum number of tokens in a batch; None: `usual_tokens`.
    on_halved: called with the new maximum number of tokens if a batch does not fit into memory.
    on_sent: called when the last batch has been sent to the device. From then on it is only waited for.

    The next batch is sent to a GPU before the last one's logits are read, so that it does not wait for the host between
    two of them.
    Batches depend only on the rows and the kind of device, so the same rows give the same bytes, unless a batch
    does not fit into memory: then it and all later ones have half as many tokens, and logits can differ in their last
    bits.
    """
    device = inference.device
    for model in inference.models:
        if model.training:  # walking all of its modules takes a while
            model.eval()
    positions = np.arange(len(rows)) if positions is None else positions
    batch_tokens = batch_tokens or usual_tokens(device)
    batch_tokens = limited_tokens(inference, rows, batch_tokens)
    lengths = rows.lengths[positions]
    order, start = np.argsort(-lengths, kind="stable"), 0
    most = ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_GPU
    sent: deque[tuple[np.ndarray, PendingLogits | PendingPacked]] = deque()
    while start < len(order):  # longest first, so that a lack of memory shows at once
        chosen = next_batch(order, lengths, start, batch_tokens, most)
        batch = None
        try:
            batch = pending(inference, rows[positions[chosen]])
        except (RuntimeError, MemoryError) as error:  # torch's own OutOfMemoryError is a RuntimeError
            if len(chosen) == 1 or not out_of_memory(error):
                raise
            batch_tokens = len(chosen) // 2 * max(1, int(lengths[chosen[0]]))
            on_halved(batch_tokens)
            log.warning(
                "out of memory with %d rows of %d tokens; continuing with %d tokens at a time",
                len(chosen),
                lengths[chosen[0]],
                batch_tokens,
            )
        if batch is None:  # outside the handler, whose traceback holds the memory to be freed
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start += len(chosen)
        sent.append((positions[chosen], batch))
        if len(sent) > 1 or device.type == "cpu":
            at, first = sent.popleft()
            yield at, first.get()
    on_sent()
    for at, last in sent:
        yield at, last.get()


def predict_rows(
    inference: Inference,
    rows: InputRows,
    positions: np.ndarray,
    batch_tokens: int | None = None,
    on_halved: Callable[[int], None] = lambda tokens: None,
    on_sent: Callable[[], None] = lambda: None,
) -> Sequence[np.ndarray]:
    """What `predict` yields, of each row in the order of `positions`: one array if all have one shape.

    positions: (N,) distinct.
    """
    order = np.argsort(positions)
    batches = [
        (order[np.searchsorted(positions, at, sorter=order)], values)
        for at, values in predict(inference, rows, positions, batch_tokens, on_halved, on_sent)
    ]
    shapes = {values.shape[1:] if isinstance(values, np.ndarray) else None for _, values in batches}
    if len(shapes) == 1 and (shape := shapes.pop()):
        whole = np.empty((len(positions), *shape), np.float16)
        for places, values in batches:
            whole[places] = values
        return cast(Sequence[np.ndarray], whole)
    found: list[np.ndarray] = [np.empty(0)] * len(positions)
    for places, values in batches:
        for place, row in zip(places.tolist(), values, strict=True):
            found[place] = row
    return found
