"""The precision of a training: what `training.precision` says, and for auto on a GPU the faster one."""

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import torch
import transformers

from raykd.common.out_of_memory import out_of_memory
from raykd.common.ranks import DistContext
from raykd.common.remembered import remembered
from raykd.data.batches import batch_order
from raykd.models.inputs import InputRows
from raykd.models.loading import dtype_of
from raykd.models.prediction import autocast
from raykd.plan.job import Job
from raykd.tasks import Batch, Task
from raykd.training.rows import used_rows

log = logging.getLogger(__name__)
BATCHES = 8  # that are timed
LARGEST_FLOPS = 1e13  # of a micro-batch: above, a GPU is busy with the products, which are faster in bf16


def training_dtype(
    job: Job, model: torch.nn.Module, task: Task, processor: Any, rows: datasets.Dataset, context: DistContext
) -> str:
    """The dtype of a training's forward passes, "float32" or "bfloat16", the same on every worker.

    bf16 autocast adds a kernel for each cast. A small model keeps the host busy with launching them while the GPU
    waits, so its steps can be slower in bf16 than in fp32. So `auto` times both on the job's own batches where it would
    take bf16, and takes fp32 if that is faster. The store remembers which, so all trainings of a sweep have the same.
    Large and quantised models and language models are not timed, nor compiled ones, whose launches are few.

    model: as it was loaded. It is not changed.
    rows: the encoded training rows.
    """
    training = job.training
    dtype = dtype_of(training.precision, context.device)
    settled = training.precision != "auto" or dtype == "float32"
    if settled or task.predicts_tokens or training.compile or job.model.bits:
        return dtype
    inputs, used = InputRows(rows, task), used_rows(rows, job.row_subset)
    each = math.ceil(training.batch_size / (job.workers * training.accumulation))  # rows of a micro-batch
    if flops(model, each * float(inputs.lengths[used].mean())) > LARGEST_FLOPS:
        return dtype

    def measured() -> str:
        order = batch_order(inputs.lengths[used], training.batch_size, job.seed, training.group_by_length)
        chosen = [used[next(order)[:each]] for _ in range(BATCHES)]
        try:
            batches = [task.collate(inputs[positions], processor).to(context.device) for positions in chosen]
            return faster(passes(model, task, batches, context.device), context.device)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return "bfloat16"  # which takes less of it
        finally:
            if context.device.type == "cuda":
                torch.cuda.empty_cache()

    identity = [
        _device_name(context.device), torch.__version__, transformers.__version__, job.model_digest, job.task.kind,
        job.lora.model_dump() if job.lora else None, training.gradient_checkpointing, each,
        [encoded.digest for encoded in job.train],
    ]  # fmt: skip
    found = context.each(
        lambda: remembered(job.store, "precision", identity, measured) if context.is_main else dtype,
        "choosing its precision",
    )
    return found[0]


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


def faster(work: Sequence[Callable[[str], None]], device: torch.device) -> str:
    """The dtype in which the work takes less time: "float32" or "bfloat16".

    work: functions of the dtype. Each is called in both, first unmeasured, then in turns.
    """
    seconds = {"bfloat16": 0.0, "float32": 0.0}
    for measured in (False, True):  # kernels are planned in a first pass over each shape
        for one in work:
            for dtype in seconds:
                began = time.perf_counter()
                one(dtype)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[dtype] += measured * (time.perf_counter() - began)
    if seconds["float32"] >= seconds["bfloat16"]:
        return "bfloat16"
    bf16, fp32 = (1000 * seconds[dtype] / len(work) for dtype in ("bfloat16", "float32"))
    log.warning(
        "training.precision = auto: fp32, which is faster for this model on this GPU: the forward and backward pass of "
        "a batch take %.3g ms, in bf16 %.3g ms",
        fp32,
        bf16,
    )
    return "float32"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
