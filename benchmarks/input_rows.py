"""What it costs the host to give a model its rows: read from Arrow as arrays, compared with lists by `datasets`.

    python benchmarks/input_rows.py --data SST2 --model MINILM [--quick]

SST-2 as encoded for MiniLM, one thread. Of a teacher's block (1,024 rows) and of a student's step (32 rows): to look up
the lengths (a block only), to read the rows, and to pad them into a batch, in turns. On a GPU this is the time during
which small models wait for the host.

The last line is one JSON object. block_arrays_of_lists, step_arrays_of_lists: the ratio of the times, the median over
the rounds, with its quartiles.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from raykd.models.inputs import InputRows, input_columns
from sst2 import arguments, prepared_sst2


def seconds(work: Callable[[], object], repeats: int) -> float:
    since = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - since) / repeats


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="ten rounds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as output:
        prepared = prepared_sst2(given, output)
        task, processor = prepared.task, prepared.student.model.processor
        encoded = prepared.student.splits["train"].open()
        lists, arrays = input_columns(encoded, task), InputRows(encoded, task)
        rng = np.random.default_rng(0)

        def by_lists(positions: np.ndarray, lengths: bool) -> None:
            if lengths:
                np.asarray(lists.select(positions).select_columns("length")[:]["length"])
            task.collate(lists[positions], processor)

        def by_arrays(positions: np.ndarray, lengths: bool) -> None:
            if lengths:
                arrays.lengths[positions]
            task.collate(arrays[positions], processor)

        found: dict[str, list[tuple[float, float]]] = {"block": [], "step": []}
        for _ in range(10 if given.quick else given.rounds):
            for name, rows, repeats in (("block", 1024, 1), ("step", 32, 20)):
                positions, block = rng.permutation(len(lists))[:rows], name == "block"
                before, now = (seconds(partial(way, positions, block), repeats) for way in (by_lists, by_arrays))
                found[name].append((before, now))
        said: dict[str, object] = {"machine": platform.machine(), "rows": len(lists)}
        for name, times in found.items():
            of_lists, of_arrays = np.array(times).T
            quartiles = np.quantile(of_arrays / of_lists, [0.25, 0.5, 0.75])
            ms = np.median(of_lists) * 1e3, np.median(of_arrays) * 1e3
            print(f"{name}: {ms[0]:.2f} ms by lists, {ms[1]:.2f} ms by arrays; {quartiles[1]:.3f} of it")
            said[f"{name}_arrays_of_lists"] = [round(float(q), 4) for q in quartiles]
            said[f"{name}_ms"] = [round(float(m), 3) for m in ms]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
