"""Encoded rows: their ids, the blocks to compute (in the driver), the rows of a block (in a replica)."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_up import BLOCK_ROWS, made_encoded, served, teacher_work
from measure import MILLION, apart, forget_peak, listed, memory, say, seconds

from raykd.data.encoding import Encoded, id_column
from raykd.logits import TeacherLogits
from raykd.models import prediction
from raykd.tasks import make_task
from raykd.teachers.blocks import missing_blocks
from raykd.teachers.serving import ServedTeacher, TeacherModel


class NoModel(TeacherModel):
    """Reads a block's rows like a real model, but returns constant logits."""

    def __init__(self, taught: ServedTeacher) -> None:
        self.served, self.task = taught, make_task(taught.task, taught.label_names)
        self.device, self.processor, self.models = torch.device("cpu"), None, []
        self._opened, self.batch_tokens = {}, prediction.usual_tokens(self.device)


class NoPending:
    """The logits of `NoModel`."""

    def __init__(self, inference: prediction.Inference, columns: Any) -> None:
        self.rows = len(columns["length"])

    def get(self) -> list[np.ndarray]:
        return list(np.zeros((self.rows, 1, 2), np.float16))


def fetching(encoded: Encoded, rows: int) -> float:
    """Milliseconds for a replica to read the rows of a block in a split that it has opened before."""
    model, known = NoModel(served()), prediction.PendingLogits
    prediction.PendingLogits = NoPending  # type: ignore[assignment, misc]
    try:
        positions = np.random.default_rng(0).permutation(rows)[: 4 * BLOCK_ROWS].reshape(4, BLOCK_ROWS)
        folds = np.full(BLOCK_ROWS, -1)
        times = [seconds(partial(model.logits, (encoded.folder,), chosen, folds)) for chosen in positions]
    finally:
        prediction.PendingLogits = known  # type: ignore[misc]
    return 1000 * float(np.median(times[1:]))


def planning(folder: Path, encoded: Encoded, rows: int) -> dict[str, float]:
    """The driver's time for teachers' encoded rows, and its MB per million rows and teacher."""
    found = {"open_s": seconds(encoded.open, 3)}
    opened = encoded.open()
    before = forget_peak()
    found["ids_s"] = seconds(lambda: id_column(opened, "row_id"))
    found["ids_peak_mb"] = (memory("VmHWM") - before) / 1e6 / rows * MILLION
    one, stored = teacher_work(encoded, rows), TeacherLogits(folder / "none", served().key)
    before = forget_peak()
    since = time.process_time()
    kept = [missing_blocks(one, stored, BLOCK_ROWS)]
    found |= {"plan_s": time.process_time() - since, "blocks": len(kept[0])}
    found["plan_peak_mb"] = (memory("VmHWM") - before) / 1e6 / rows * MILLION
    own = memory("RssAnon")
    kept += [missing_blocks(one, stored, BLOCK_ROWS) for _ in range(3)]
    found["plan_kept_mb"] = (memory("RssAnon") - own) / 1e6 / 3 / rows * MILLION
    found["fetch_ms"] = fetching(encoded, rows)
    return found


def part(folder: Path, quick: bool) -> dict[str, Any]:
    found = {}
    for rows in (30_000, 100_000) if quick else (MILLION, 3 * MILLION):
        encoded = made_encoded(folder, rows)
        found[str(rows)] = apart(planning, folder, encoded, rows)
        say(f"{rows:,} encoded rows: {listed(found[str(rows)])}")
        shutil.rmtree(encoded.folder)
    return found
