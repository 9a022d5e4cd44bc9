"""How cost grows with teachers, rows, trials and workers: fitted exponents, and memory that should be flat.

    python benchmarks/scaling.py [--quick] [--only teachers rows trials workers] [--figure scaling.png]

- teachers, 1 to 8 (scikit-learn's digits, the demo's ViT): CPU seconds of the teacher pass (exponent 1 expected) and of
  a student's step with their stored logits (0 expected), and the training's peak memory (0 expected);
- rows, to 1 million (made-up encoded texts of 12 tokens, toy ELECTRA): CPU seconds and peak memory of the teacher pass,
  block by block (1 and 0 expected), and of a student's reader that reads every row once (1 expected for the seconds;
  its memory includes an index of the rows, so it grows);
- trials, to 1,000 that end at once: the driver's CPU seconds (1 expected) and the growth of its memory (see sweep.py);
- workers, 1 to 4 that share batches of 256 digits (DDP, gloo, without Ray): CPU seconds of a step in all of them (0
  expected, more by what they exchange) and in one of them (-1), and the peak memory of one (0). CPU seconds, because
  on fewer cores than workers the clock shows nothing.

All sizes but those of trials run in new processes. An exponent is the slope of a line through log(cost) and log(size);
for memory it is of the whole peak, with what the imports take. The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raykd.common.environment import set_environment

set_environment()  # before Ray, transformers and datasets are imported
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE / "scale"), str(HERE.parent / "tests")]  # made-up rows, tiny models

import numpy as np  # noqa: E402
import torch  # noqa: E402
from made_up import made_encoded, teacher_work  # noqa: E402
from measure import apart, forget_peak, memory  # noqa: E402
from tiny import electra, save_tokenizer  # type: ignore[import-not-found]  # noqa: E402

from founding.trainings import VIT, TeacherSet, digits, run  # noqa: E402
from raykd.common.ranks import DistContext  # noqa: E402
from raykd.config.schema import ModelConfig, TaskConfig  # noqa: E402
from raykd.data.encoding import id_column  # noqa: E402
from raykd.experiment.command import cluster  # noqa: E402
from raykd.logits import StoredLogits, TeacherLogits  # noqa: E402
from raykd.models.loading import load_model  # noqa: E402
from raykd.models.opened import open_model  # noqa: E402
from raykd.plan.job import Job  # noqa: E402
from raykd.tasks import make_task  # noqa: E402
from raykd.teachers.serving import ServedTeacher  # noqa: E402
from raykd.training.loop import train  # noqa: E402
from sweep import Bench, thousand  # noqa: E402

BLOCK_ROWS = 1024
LABELS = {  # in the figure
    "teacher_pass_s": "teacher pass, CPU s",
    "teacher_pass_peak_mb": "its peak, MB",
    "step_s": "a student's step, CPU s",
    "peak_mb": "the training's peak, MB",
    "reader_s": "a reader of all rows, CPU s",
    "reader_peak_mb": "its peak, MB",
    "driver_s": "driver, CPU s",
    "driver_growth_mb": "its growth, MB",
    "ms": "from a trial's end to the next, ms",
    "worker_step_s": "of one worker, CPU s",
    "worker_peak_mb": "peak of one worker, MB",
}
Costs = dict[str, float]


def with_teachers(count: int, steps: int, folder: Path) -> Costs:
    torch.set_num_threads(1)
    setting = digits(300, True, True)
    setting.tree["training"] |= {"steps": steps, "eval_every": steps}
    found = TeacherSet(setting, 0, 1, folder, count)
    found.train()
    since = time.process_time()
    served = found.served  # computes and stores their logits
    passed = time.process_time() - since
    assert len(served) == count
    forget_peak()
    since = time.process_time()
    run(found.student({"type": "weighted"}, 1))
    spent = time.process_time() - since
    return {"teacher_pass_s": passed, "step_s": spent / steps, "peak_mb": memory("VmHWM") / 1e6}


def with_rows(rows: int, folder: Path) -> Costs:
    torch.set_num_threads(1)
    encoded = made_encoded(folder, rows)
    labels = ("bad", "good")
    task = TaskConfig.model_validate({"type": "text-classification", "labels": list(labels)})
    spec = ModelConfig.model_validate({"config": electra(), "tokenizer": str(save_tokenizer(folder / "tokenizer"))})
    opened = open_model(spec, make_task(task, labels), "model")
    load_model(opened, 0).save_pretrained(folder / "teacher")  # type: ignore[operator]
    opened.processor.save_pretrained(folder / "teacher")
    model = ModelConfig(pretrained=str(folder / "teacher"))
    one = ServedTeacher("a", task, labels, (model,), (f"of {rows}",), "p", "s", "float32", 65_536)
    store, loaded = TeacherLogits(folder / "logits", one.key), one.load(0)
    opened_rows = encoded.open()
    ids, inputs = id_column(opened_rows, "row_id"), id_column(opened_rows, "input_hash")
    order = teacher_work(encoded, rows).order
    assert order is not None
    forget_peak()
    since = time.process_time()
    for start in range(0, rows, BLOCK_ROWS):
        part = order[start : start + BLOCK_ROWS]
        store.add(ids[part], inputs[part], loaded.logits([encoded.folder], part, np.full(len(part), -1)))
    passed, peak = time.process_time() - since, memory("VmHWM") / 1e6
    forget_peak()
    since = time.process_time()
    reader = StoredLogits([TeacherLogits(folder / "logits", one.key)], ids, [inputs])
    for start in range(0, rows, 32):
        reader[order[start : start + 32]]
    return {
        "teacher_pass_s": passed,
        "teacher_pass_peak_mb": peak,
        "reader_s": time.process_time() - since,
        "reader_peak_mb": memory("VmHWM") / 1e6,
    }


def with_trials(count: int, folder: Path) -> Costs:
    setting = digits(300, False, True)
    teachers = [{"name": "a", "model": VIT, "recipe": {"seed": 1}}]
    search = {"trials": count, "space": {"method.alpha": {"uniform": [0.2, 0.9]}}}
    given = setting.tree | {"name": "trials", "output": str(folder / "runs"), "teachers": teachers, "search": search}
    bench = Bench(given | {"method": "kd"})
    with cluster(bench.config, bench.sweep.prepared, bench.console, "sweep"):
        bench.sweep.space.search = bench.sweep.space.search.model_copy(update={"trials": 1})
        bench.explore()
        since = time.process_time()
        megabytes, _, milliseconds = thousand(bench, count)
        return {
            "driver_s": time.process_time() - since,
            "driver_growth_mb": megabytes * count / 1000,
            "ms": milliseconds,
        }


def with_workers(count: int, steps: int, folder: Path) -> Costs:
    setting = digits(300, True, True)
    setting.tree["training"] |= {"steps": steps, "eval_every": steps, "batch_size": 256}
    setting.tree["student"]["workers"] = count
    found = TeacherSet(setting, 0, 1, folder)
    found.served  # noqa: B018 (computes their logits)
    job = found.student({"type": "weighted"}, 1)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(_worker, rank, count, job, folder / "group") for rank in range(count)]
        costs = [rank.result() for rank in ranks]
    spent = sum(seconds for seconds, _ in costs) / steps
    return {"step_s": spent, "worker_step_s": spent / count, "worker_peak_mb": max(peak for _, peak in costs)}


def _worker(rank: int, count: int, job: Job, meeting: Path) -> tuple[float, float]:
    """CPU seconds of the training in this process, and its peak memory in MB."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=count)
    for _ in train(dataclasses.replace(job, steps=1), DistContext(rank, count)):  # imports
        pass
    forget_peak()
    since = time.process_time()
    for _ in train(job, DistContext(rank, count)):
        pass
    spent = time.process_time() - since
    torch.distributed.destroy_process_group()
    return spent, memory("VmHWM") / 1e6


def exponent(sizes: list[int], costs: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(3.4 * len(found), 4), layout="constrained")
    for axes, (part, costs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        sizes = [int(size) for size in costs["by_size"]]
        for name, value in costs["exponents"].items():
            values = [one[name] for one in costs["by_size"].values()]
            axes.loglog(sizes, values, "-o", label=f"{LABELS[name]}: exponent {round(value, 2) + 0.0:.2f}")
        axes.set(xlabel=part)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)  # hides no line
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("teachers", "rows", "trials", "workers")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--figure", type=Path, help="where to draw it")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean nothing")
    given = parser.parse_args()
    quick, steps = given.quick, 20 if given.quick else 200
    sizes: dict[str, tuple[int, ...]] = {
        "teachers": (1, 2) if quick else (1, 2, 4, 8),
        "rows": (3_000, 10_000) if quick else (10_000, 100_000, 1_000_000),
        "trials": (10, 20) if quick else (100, 300, 1000),
        "workers": (1, 2) if quick else (1, 2, 4),
    }
    work: dict[str, Callable[[int, Path], Costs]] = {
        "teachers": lambda n, folder: apart(with_teachers, n, steps, folder),
        "rows": lambda n, folder: apart(with_rows, n, folder),
        "trials": with_trials,
        "workers": lambda n, folder: with_workers(n, steps, folder),
    }
    print(f"{platform.machine()}, torch {torch.__version__}, one thread", flush=True)
    found: dict[str, Any] = {}
    for part in given.only:
        by_size: dict[str, Costs] = {}
        for size in sizes[part]:
            with tempfile.TemporaryDirectory() as folder:
                by_size[str(size)] = work[part](size, Path(folder))
            costs = ", ".join(f"{name} {value:.4g}" for name, value in by_size[str(size)].items())
            print(f"  {size:,} {part}: {costs}", flush=True)
        columns = {name: [one[name] for one in by_size.values()] for name in by_size[str(sizes[part][0])]}
        fits = {name: exponent(list(sizes[part]), costs) for name, costs in columns.items() if min(costs) > 0}
        print(f"  exponents: {', '.join(f'{name} {value:.2f}' for name, value in fits.items())}", flush=True)
        found[part] = {"by_size": by_size, "exponents": fits}
    if given.figure:
        draw(found, given.figure)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
