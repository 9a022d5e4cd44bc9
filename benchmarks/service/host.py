"""What precomputing costs the host: a teacher that takes no time, in batches as large as a GPU's."""

import time
from typing import Any

import numpy as np

from raykd.models.inputs import open_inputs
from raykd.teachers.serving import ServedTeacher
from service.bench import Bench
from service.stand_ins import FreeTeacher, variant

BLOCK_ROWS = 1024  # the default of logits.block_rows
WARM_BLOCKS = 2


def host_limit(bench: Bench, repeats: int) -> dict[str, Any]:
    """Rows per second that are read, padded, checked, written and answered for; no GPU can be faster than that.

    Compared with reading and padding the same rows in one loop, in turns.
    """
    task, processor = bench.prepared.task, bench.prepared.teachers["t0"].model.processor
    rows = open_inputs([bench.train_folder], task)
    rates: dict[str, list[float]] = {"fill": [], "read": []}
    for repeat in range(repeats):
        rates["fill"].append(_fill_rate(bench, variant(FreeTeacher, bench.served(), f"free {repeat}")))
        began = time.perf_counter()
        for start in range(0, len(bench.order), BLOCK_ROWS):
            positions = bench.order[start : start + BLOCK_ROWS]
            task.collate(rows[positions], processor)
        rates["read"].append(len(bench.order) / (time.perf_counter() - began))
    ratios = np.divide(rates["fill"], rates["read"])
    rate, ratio = float(np.median(rates["fill"])), float(np.median(ratios))
    print(
        f"  a teacher that takes no time: {rate:.0f} rows/s ({min(rates['fill']):.0f} to {max(rates['fill']):.0f}), "
        f"{ratio:.3f} ({ratios.min():.3f} to {ratios.max():.3f}) of only reading and padding"
    )
    return {"host_rows_s": rate, "host_vs_reading": ratio, "host_vs_reading_range": [ratios.min(), ratios.max()]}


def _fill_rate(bench: Bench, served: ServedTeacher) -> float:
    ends: list[tuple[float, int]] = []
    work = bench.teacher_work(served, bench.order, 0.0)
    pool = bench.pool([work], bench.configured(BLOCK_ROWS), lambda p: ends.append((time.perf_counter(), p.computed)))
    try:
        pool.start()
        pool.wait()
    finally:
        pool.close()
    (began, first), (ended, last) = [end for end in ends if end[1]][WARM_BLOCKS], ends[-1]
    return (last - first) / (ended - began)
