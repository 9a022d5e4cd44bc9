"""Raw rows: read, identified by content, encoded."""

import time
from pathlib import Path
from typing import Any

import datasets
from made_up import text_job, write_questions, write_texts
from measure import MILLION, apart, forget_peak, listed, memory, say, seconds

from raykd.config.load import build
from raykd.data.encoding import encode
from raykd.data.loading import load_splits
from raykd.models.opened import open_model
from raykd.tasks import make_task


def reading(folder: Path, rows: int, kind: str) -> dict[str, float]:
    """Seconds and MB per million rows of the driver's first steps, with `encode` in one process."""
    source = (write_questions if kind == "question-answering" else write_texts)(folder / "raw", rows)
    config = build(text_job(folder, source, kind))
    task = make_task(config.task, config.task.labels or ())
    config.store.mkdir(parents=True)
    before, own = forget_peak(), memory("RssAnon")
    since = time.process_time()
    splits = load_splits(config, task)
    found = {"load_s": time.process_time() - since, "load_peak_mb": (memory("VmHWM") - before) / 1e6}
    found["load_kept_mb"] = (memory("RssAnon") - own) / 1e6
    if kind == "text-classification":
        processor = open_model(config.student.model, task, "student.model").processor
        before = forget_peak()
        found["encode_s"] = seconds(lambda: encode(splits["train"], task, processor, config.store, 1))
        found["encode_peak_mb"] = (memory("VmHWM") - before) / 1e6
    return {name: value / rows * MILLION for name, value in found.items()}


def part(folder: Path, quick: bool) -> dict[str, Any]:
    datasets.disable_progress_bars()
    found = {}
    for kind, sizes in {"text-classification": (100_000, 200_000), "question-answering": (20_000, 60_000)}.items():
        for rows in sizes[:1] if quick else sizes:
            place = folder / f"{kind}-{rows}"
            place.mkdir()
            got = apart(reading, place, rows // 10 if quick else rows, kind)
            found[f"{kind}_{rows}"] = got
            say(f"{kind}, {rows:,} rows; a million of them: {listed(got)}")
    return found
