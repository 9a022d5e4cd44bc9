"""The student's read path: time and memory for a batch's logits."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raykd.common.ranks import local_device
from raykd.logits import LogitStore, StoredLogits, TeacherKey, TeacherLogits
from service.bench import BATCH


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def made_up_keys() -> list[TeacherKey]:
    return [TeacherKey(f"made up {i}", "none", "none", "float32", metadata={"name": f"m{i}"}) for i in range(3)]


def write_store(folder: str, ids: np.ndarray) -> None:
    for i, key in enumerate(made_up_keys()):
        store, rng = TeacherLogits(LogitStore.at(folder), key), np.random.default_rng(i)
        for start in range(0, len(ids), 1024):
            part = ids[start : start + 1024]
            store.add(part, part, list(rng.normal(size=(len(part), 2, 384)).astype(np.float16)))


def read_store(folder: str, ids: np.ndarray) -> tuple[list[float], int]:
    """In a new process: seconds of each batch, and the memory that reading all rows takes."""
    torch.set_num_threads(1)
    device = local_device(1)
    torch.zeros(1, device=device)
    before = anonymous_bytes()
    stored = StoredLogits([TeacherLogits(LogitStore.at(folder), key) for key in made_up_keys()], ids, [ids] * 3)
    times = []
    for seed in range(3):
        for chosen in np.random.default_rng(seed).permutation(len(ids))[: len(ids) // BATCH * BATCH].reshape(-1, BATCH):
            since = time.perf_counter()
            logits = torch.from_numpy(stored[chosen]).to(device)
            times.append(time.perf_counter() - since)
            assert logits.shape == (3, BATCH, 2, 384)
    return times, anonymous_bytes() - before


def gather(folder: str, rows: int = 4000) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(0, 256, (rows, 16), dtype=np.uint8)
    write_store(folder, ids)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        times, grown = other.submit(read_store, folder, ids).result()
    low, value, high = np.percentile(np.asarray(times) * 1e6, [25, 50, 75])
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.block"))
    growth = 100 * grown / size
    print(
        f"  {BATCH} rows of 3 stored teachers, (2, 384) each: median {value:.0f} us, quartiles {low:.0f} to "
        f"{high:.0f}; private memory grew by {growth:.1f}% of the store's {size / 1e6:.1f} MB"
    )
    return {"gather_us": float(value), "gather_us_quartiles": [float(low), float(high)], "rss_growth": growth}
