"""Measures what a model costs to serve: its size, and its latency and throughput on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.late import Late
from raykd.common.ranks import local_device
from raykd.common.row_files import open_rows
from raykd.common.threads import torch_threads
from raykd.common.units import counted, latency
from raykd.common.versions import processor_name
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.models.inputs import input_columns
from raykd.models.loading import default_dtype, load_whole
from raykd.models.opened import open_model
from raykd.models.prediction import LARGEST_LOGITS, Inference, PendingLogits
from raykd.tasks import Task, make_task

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

Cost = dict[str, Any]  # JSON, as `measure` returns it
ONE_ROW_SECONDS, BATCH_SECONDS = 0.3, 0.5  # of repeating each; slow models take longer, by the fewest repetitions
_FEWEST, _MOST = 3, 200  # repetitions


@dataclass(frozen=True)
class Servable:
    """What is measured: one model, or the fold models whose mean is a teacher's answer. Picklable.

    key: the config's section that it comes from, for errors.
    rows: the folder of the encoded rows that it is run on.
    dtype: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it.
    batch_rows: rows of a full batch.
    threads: of a CPU.
    num_gpus: 0 if it runs on the CPU.
    """

    key: str
    task: TaskConfig
    label_names: tuple[str, ...]
    models: tuple[ModelConfig, ...]
    rows: Path
    dtype: str
    batch_rows: int
    threads: int
    num_gpus: float


def measure(servable: Servable) -> Cost:
    """Load the models and time them. The number of torch's threads is as before afterwards.

    Times are from encoded rows on the host to logits on the host, without tokenizing. The one row has the median
    length of all rows, and those of the batch are spread evenly over all lengths.
    """
    with torch_threads(servable.threads):
        task = make_task(servable.task, servable.label_names)
        opened = [open_model(spec, task, servable.key) for spec in servable.models]
        device, processor = local_device(servable.num_gpus), opened[0].processor
        dtype = default_dtype(device) if servable.dtype == "auto" else servable.dtype
        models: list[Any] = [load_whole(model, processor, device, dtype).eval() for model in opened]
        inference = Inference(models, task, processor, device, dtype)
        one, batch = chosen_rows(open_rows(servable.rows), task, servable.batch_rows)

        def timed(columns: Mapping[str, list], seconds: float) -> list[float]:
            return times(lambda: PendingLogits(inference, columns).get(), seconds)

        of_one, of_batch = timed(one, ONE_ROW_SECONDS), timed(batch, BATCH_SECONDS)
        name = f"{processor_name()}, {counted(servable.threads, 'thread')}"
        return {
            "parameters": sum(model.num_parameters() for model in models),  # 4-bit weights count, too
            "size_on_disk_bytes": sum(size_on_disk(f) for model in opened for f in {model.folder, model.weights} if f),
            "one_row": summary(of_one, 1),
            "batch": summary(of_batch, len(batch["length"])),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
            "dtype": dtype,
        }


def size_on_disk(folder: Path) -> int:
    """Bytes of a saved model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def chosen_rows(rows: Dataset, task: Task, batch_rows: int) -> tuple[dict[str, list], dict[str, list]]:
    """The columns of the row of median length, and of at most `batch_rows` rows over all lengths.

    Of a language model there are fewer where the logits of so many would not fit into memory.
    """
    lengths = np.asarray(rows.select_columns("length")[:]["length"])
    order = np.argsort(lengths, kind="stable")
    if task.predicts_tokens:
        batch_rows = min(batch_rows, max(1, LARGEST_LOGITS // int(rows[0]["vocabulary"] * lengths.max())))
    places = np.linspace(0, len(order) - 1, min(batch_rows, len(order))).round().astype(int)
    inputs = input_columns(rows, task)
    return inputs[order[[len(order) // 2]]], inputs[order[places]]


def times(work: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each repetition, for about as many seconds in all. A first one, which plans kernels, is not counted.

    work: what is repeated.
    """
    work()
    taken: list[float] = []
    while len(taken) < _FEWEST or (sum(taken) < seconds and len(taken) < _MOST):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def summary(seconds: Sequence[float], rows: int) -> dict[str, float]:
    """Median, 10th and 90th percentile, and the throughput at the median. seconds: of repetitions with `rows` rows."""
    low, median, high = (float(np.quantile(seconds, share)) for share in (0.1, 0.5, 0.9))
    return {
        "rows": rows,
        "latency_ms": round(1000 * median, 4),
        "latency_p10_ms": round(1000 * low, 4),
        "latency_p90_ms": round(1000 * high, 4),
        "throughput_rows_per_s": round(rows / median, 2),
    }


def one_after_another(costs: Sequence[Cost]) -> Cost:
    """The cost of an ensemble whose members run one after another on the device on which each was measured."""
    parts = {}
    for part in ("one_row", "batch"):
        rows = costs[0][part]["rows"]
        total = {
            name: round(sum(cost[part][name] for cost in costs), 4)
            for name in ("latency_ms", "latency_p10_ms", "latency_p90_ms")
        }
        parts[part] = {"rows": rows, **total, "throughput_rows_per_s": round(1000 * rows / total["latency_ms"], 2)}
    sums = {name: sum(cost[name] for cost in costs) for name in ("parameters", "size_on_disk_bytes")}
    return {**sums, **parts, "device": costs[0]["device"], "dtype": costs[0]["dtype"]}


def card_line(cost: Cost) -> str:
    """The line of a model card that states its latency."""
    one, batch = cost["one_row"], cost["batch"]
    return (
        f"{_CARD}{latency(one)} for one row, {latency(batch)} for a batch of {batch['rows']} "
        f"({batch['throughput_rows_per_s']:,.0f} rows/s): median (10th to 90th percentile), without tokenizing, on "
        f"{cost['device']}"
    )


_CARD = "- latency: "


def with_card_line(card: str, cost: Cost) -> str:
    """A model card with its latency, in the place of an earlier one, or else after its size."""
    lines = [line for line in card.splitlines() if not line.startswith(_CARD)]
    at = next((i for i, line in enumerate(lines) if line.startswith("- size: ")), None)
    if at is not None:
        lines.insert(at + 1, card_line(cost))
    return "\n".join(lines) + "\n"
