"""The precision of a training: what `training.precision` says, and for auto on a GPU the faster one."""

import copy
import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
import transformers

from raykd.common.atomic import write_atomically
from raykd.common.ranks import DistContext
from raykd.common.remembered import remembered
from raykd.data.batches import batch_order
from raykd.models.inputs import InputRows
from raykd.models.loading import dtype_of
from raykd.models.prediction import autocast
from raykd.models.problems import short_reason
from raykd.plan.job import Job
from raykd.tasks import Batch, Task
from raykd.training.checkpoint import CHECKPOINT
from raykd.training.rows import used_rows

log = logging.getLogger(__name__)
BATCHES, ROUNDS = 8, 3  # that are timed; before them, each batch is computed once in both precisions
CLEARLY = 0.9  # fp32 takes less than this share of bf16's time, or it is not taken
LARGEST_FLOPS = 1e13  # of a micro-batch: above, a GPU is busy with the products, which are faster in bf16
DTYPES = ("bfloat16", "float32")


def training_dtype(
    job: Job, model: torch.nn.Module, task: Task, processor: Any, rows: datasets.Dataset, context: DistContext
) -> str:
    """The dtype of a training's forward passes, "float32" or "bfloat16", the same on every worker.

    bf16 autocast adds a kernel for each cast. A small model keeps the host busy with launching them while the GPU
    waits, so its steps can be slower in bf16 than in fp32. So where `auto` would take bf16, it times both on the job's
    own batches, and takes fp32 if that is clearly faster. The store remembers it for other trainings of this model,
    with these rows and as many in a batch, on such a GPU; the training's folder for a resume. Large and quantised
    models and language models are not timed, nor compiled ones, whose launches are few.

    model: as it was loaded. It is not changed.
    rows: the encoded training rows.
    """
    training = job.training
    dtype = dtype_of(training.precision, context.device)
    settled = training.precision != "auto" or dtype == "float32"
    if settled or task.predicts_tokens or training.compile or job.model.bits:
        return dtype

    def chosen() -> str:
        if not context.is_main:
            return dtype
        file = job.folder / "dtype"
        if file.exists() and (before := file.read_text()) in DTYPES:
            return before
        if any(job.folder.glob(f"generation-*/{CHECKPOINT}")):  # made where nothing was timed
            return dtype
        found = _timed(job, model, task, processor, rows, context.device)
        if found is None:
            return dtype
        write_atomically(file, found.encode())
        return found

    return context.each(chosen, "choosing its precision")[0]


def _timed(
    job: Job, model: torch.nn.Module, task: Task, processor: Any, rows: datasets.Dataset, device: torch.device
) -> str | None:
    """The faster dtype, which the store remembers; None if it could not be measured, or need not be."""
    training, inputs, used = job.training, InputRows(rows, task), used_rows(rows, job.row_subset)
    each = math.ceil(training.batch_size / (job.workers * training.accumulation))  # rows of a micro-batch
    if flops(model, each * float(inputs.lengths[used].mean())) > LARGEST_FLOPS:
        return None

    def measured() -> str:
        order = batch_order(inputs.lengths[used], training.batch_size, job.seed, training.group_by_length)
        parts = [inputs[used[next(order)[:each]]] for _ in range(BATCHES)]
        batches = [task.collate(part, processor).to(device) for part in parts]
        return faster_dtype(passes(model, task, batches, device), device)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    identity = [
        name, torch.__version__, transformers.__version__, job.model_digest, job.task.kind, each,
        job.lora.model_dump() if job.lora else None, training.gradient_checkpointing, [e.digest for e in job.train],
    ]  # fmt: skip
    try:
        return remembered(job.store, "precision", identity, measured)
    except Exception as error:  # a neighbour's memory, or a model that cannot be copied: the training need not end
        log.warning("training.precision = auto: bf16, as the two could not be timed (%s)", short_reason(error))
        return None
    finally:
        if device.type == "cuda":
            gc.collect()  # the copy of a model with peft's modules is in reference cycles
            torch.cuda.empty_cache()


def flops(model: torch.nn.Module, tokens: float) -> float:
    """Roughly, of a forward and a backward pass: six for each weight and token, without those of embeddings."""
    embeddings = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Embedding))
    return 6.0 * (sum(parameter.numel() for parameter in model.parameters()) - embeddings) * tokens


def passes(
    model: torch.nn.Module, task: Task, batches: Sequence[Batch], device: torch.device
) -> list[Callable[[str], None]]:
    """The forward and backward pass of a copy of the model on each batch, as functions of the dtype."""
    copied = copy.deepcopy(model).train()

    def work(batch: Batch, dtype: str) -> None:
        with autocast(device, dtype):
            outputs = copied(**batch.inputs)
        task.decisions(outputs, batch).float().sum().backward()
        copied.zero_grad(set_to_none=True)

    return [partial(work, batch) for batch in batches]


def faster_dtype(work: Sequence[Callable[[str], None]], device: torch.device) -> str:
    """The dtype that the work takes less time in: "float32" if that is clear, else "bfloat16".

    work: functions of the dtype, which are called in turns.
    """
    seconds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for number in range(ROUNDS + 1):
        for one in work:
            for dtype in DTYPES:
                began = time.perf_counter()
                one(dtype)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if number:  # in the first round, kernels are planned for each shape
                    seconds[dtype].append(time.perf_counter() - began)
    bf16, fp32 = (np.array(seconds[dtype]) for dtype in DTYPES)
    if np.median(fp32 / bf16) >= CLEARLY:
        return "bfloat16"
    log.warning(
        "training.precision = auto: fp32, which is faster for this model on this GPU: the forward and backward pass of "
        "a batch take %.3g ms, in bf16 %.3g ms",
        1000 * np.median(fp32),
        1000 * np.median(bf16),
    )
    return "float32"
