"""Precomputing compared with a bare loop of the same model, in turns block by block."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import ray
import torch

from raykd.models.batching import next_batch
from raykd.models.prediction import ROWS_ON_CPU, ROWS_ON_GPU, autocast
from raykd.teachers.serving import ServedTeacher, TeacherModel
from service.bench import Bench, middle
from service.stand_ins import TurnTeacher, variant

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

WARM_BLOCKS = 1


class Turns:
    """Lets two processes take turns, one block each. A block's time ends when its process asks for the next turn."""

    def __init__(self) -> None:
        self.names, self.turn = ("fill", "bare"), 0
        self.granted: dict[str, float] = {}
        self.times: dict[str, list[float]] = {name: [] for name in self.names}
        self.left: set[str] = set()
        self.changed = threading.Condition()

    def take(self, name: str) -> None:
        with self.changed:
            if name in self.granted:
                self.times[name].append(time.perf_counter() - self.granted.pop(name))
                self._pass_on()
            self.changed.wait_for(lambda: self.names[self.turn] == name or len(self.left) > 0)
            self.granted[name] = time.perf_counter()

    def leave(self, name: str) -> None:
        with self.changed:
            self.left.add(name)
            self._pass_on()

    def _pass_on(self) -> None:
        self.turn = 1 - self.turn
        self.changed.notify_all()

    def found(self) -> dict[str, list[float]]:
        return self.times


class Bare:
    """The same model without raykd around it: rows in memory, padded, forward, logits to the CPU.

    tokens: of a batch.
    """

    def __init__(self, served: ServedTeacher, num_gpus: float, folder: Path, tokens: int) -> None:
        torch.set_num_threads(1)
        loaded = TeacherModel(served, num_gpus)
        self.model, self.device, self.budget = loaded.models[0], loaded.device, tokens
        self.dtype = served.dtype
        self.max_rows = ROWS_ON_CPU if self.device.type == "cpu" else ROWS_ON_GPU
        rows = datasets.load_from_disk(str(folder))
        names = [n for n in ("input_ids", "token_type_ids") if n in rows.column_names]
        self.columns = {n: [torch.tensor(v) for v in rows.select_columns(n)[:][n]] for n in names}
        self.lengths = np.asarray(rows.select_columns("length")[:]["length"])

    @torch.inference_mode()
    def run(self, blocks: list[np.ndarray], turns: Any) -> None:
        torch.set_num_threads(1)
        with autocast(self.device, self.dtype):
            self._run(blocks, turns)

    def _run(self, blocks: list[np.ndarray], turns: Any) -> None:
        for positions in blocks:
            ray.get(turns.take.remote("bare"))
            lengths = self.lengths[positions]
            order, start = np.argsort(-lengths, kind="stable"), 0
            while start < len(order):
                chosen = next_batch(order, lengths, start, self.budget, self.max_rows)
                start += len(chosen)
                ids = positions[chosen]
                inputs = {n: self._padded([c[i] for i in ids]) for n, c in self.columns.items()}
                ones = [torch.ones(n, dtype=torch.long) for n in lengths[chosen]]
                self.model(**inputs, attention_mask=self._padded(ones)).logits.float().cpu()
        ray.get(turns.take.remote("bare"))

    def _padded(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)


def filling(bench: Bench, bare_tokens: int) -> dict[str, Any]:
    """Precompute and run a bare loop with batches of so many tokens, in turns."""
    turns = ray.remote(Turns).options(num_cpus=0, max_concurrency=8).remote()
    served = bench.served()
    placed = ray.remote(Bare).options(num_cpus=1, num_gpus=bench.share)
    bare = placed.remote(served, bench.share, bench.train_folder, bare_tokens)
    order, size = bench.order, bench.block_rows
    work = bare.run.remote([order[i : i + size] for i in range(0, len(order), size)], turns)
    taught = variant(TurnTeacher, served, "fill", turns=turns)
    pool = bench.pool([bench.teacher_work(taught, order, bench.share)], bench.configured(), lambda p: None)
    try:
        pool.start()
        pool.wait()
    finally:
        pool.close()
    ray.get(turns.leave.remote("fill"))
    ray.get(work)
    times = ray.get(turns.found.remote())
    ray.kill(bare)
    pairs = list(zip(times["fill"][WARM_BLOCKS:], times["bare"][WARM_BLOCKS:], strict=False))
    value, low, high = middle([b / f for f, b in pairs])
    rates = [size / float(np.median([pair[i] for pair in pairs])) for i in (0, 1)]
    print(
        f"  fill / bare loop: {value:.4f} (95% {low:.4f} to {high:.4f}); {rates[0]:.0f} and {rates[1]:.0f} rows/s, "
        f"{len(pairs)} blocks of {size} rows"
    )
    return {"fill_vs_bare": value, "fill_vs_bare_95": [low, high], "fill_rows_s": rates[0]}
