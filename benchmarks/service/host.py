"""What precomputing costs the host: a teacher that takes no time, in blocks and batches as large as a GPU's."""

import time
from typing import Any, Literal

import numpy as np

from raykd.models.inputs import open_inputs
from raykd.teachers.blocks import block_rows
from raykd.teachers.serving import ServedTeacher
from service.bench import Bench
from service.stand_ins import FreeTeacher, variant

WARM_ROWS = 2048  # that are not counted


def host_limit(bench: Bench, repeats: int) -> dict[str, Any]:
    """Rows per second that are read, padded, checked, written and answered for; no GPU can be faster than that.

    Compared with reading and padding the same rows in one loop, in turns.
    """
    task, processor = bench.prepared.task, bench.prepared.teachers["t0"].model.processor
    rows = open_inputs([bench.train_folder], task)
    size = block_rows(bench.teacher_work(bench.served(), bench.order, 0.0), "auto", True, 1)
    rates: dict[str, list[float]] = {"fill": [], "read": []}
    for repeat in range(repeats):
        rates["fill"].append(fill_rate(bench, variant(FreeTeacher, bench.served(), f"free {repeat}"), size))
        began = time.perf_counter()
        for start in range(0, len(bench.order), size):
            positions = bench.order[start : start + size]
            task.collate(rows[positions], processor)
        rates["read"].append(len(bench.order) / (time.perf_counter() - began))
    ratios = np.divide(rates["fill"], rates["read"])
    rate, ratio = float(np.median(rates["fill"])), float(np.median(ratios))
    print(
        f"  a teacher that takes no time: {rate:.0f} rows/s ({min(rates['fill']):.0f} to {max(rates['fill']):.0f}), "
        f"{ratio:.3f} ({ratios.min():.3f} to {ratios.max():.3f}) of only reading and padding, blocks of {size} rows"
    )
    range_ = [float(ratios.min()), float(ratios.max())]
    return {"host_rows_s": rate, "host_vs_reading": ratio, "host_vs_reading_range": range_, "host_block_rows": size}


def fill_rate(bench: Bench, served: ServedTeacher, size: int | Literal["auto"], gpus: float = 0.0) -> float:
    """Rows per second of one replica, without the first ones.

    size: rows in a block.
    gpus: that the replica has.
    """
    ends: list[tuple[float, int]] = []
    work = bench.teacher_work(served, bench.order, gpus)
    pool = bench.pool([work], bench.configured(size), lambda p: ends.append((time.perf_counter(), p.computed)))
    try:
        pool.start()
        pool.wait()
    finally:
        pool.close()
    warm = min(WARM_ROWS, len(bench.order) // 2)
    (began, first), (ended, last) = next(end for end in ends if end[1] >= warm), ends[-1]
    return (last - first) / (ended - began)
