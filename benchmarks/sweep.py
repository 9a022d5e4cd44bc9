"""The cost of a sweep, compared with plain fine-tunings, with teachers inside each trial, and in the driver.

    python benchmarks/sweep.py --data PATH_OR_HUB_ID --model PATH_OR_HUB_ID [--quick]

MiniLM on SST-2, three teachers of the student's size, two trainings at a time, one thread each.

- vs_limit: wall time of a sweep of 12 distilled trials (including the teacher pass, Tune and MLflow), divided by that
  of 12 plain fine-tunings in two bare processes plus the same teacher pass. Half of the fine-tunings run before the
  sweep, half after.
- vs_in_trial_teachers: the same trainings in two bare processes that run the three models for each batch, divided by
  the sweep. A third of them are run, and their time is multiplied by three. Also steps with 0, 1, 3 and 5 teachers in
  the loop, interleaved.
- overhead_s: seconds from the end of one trial to the end of the next in a warm process, minus its training.
- driver_mb_per_1000_trials, scheduling_ms: 1,000 trials that end at once, through Tune, the sweep's state, the journal
  and MLflow on sqlite: the growth of the driver's memory, and the time from one trial's end to the next over the last
  100 of them.

The last line is one JSON object.
"""

import argparse
import dataclasses
import io
import json
import os
import platform
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raykd.common.environment import set_environment

set_environment()  # before Ray is imported

import numpy as np  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from raykd.common.ranks import DistContext  # noqa: E402
from raykd.config.load import build  # noqa: E402
from raykd.config.schema import Config  # noqa: E402
from raykd.experiment import stages  # noqa: E402
from raykd.experiment.command import cluster  # noqa: E402
from raykd.experiment.precompute import open_pool  # noqa: E402
from raykd.experiment.work import Work  # noqa: E402
from raykd.models.loading import load_model  # noqa: E402
from raykd.models.opened import open_model  # noqa: E402
from raykd.plan.job import Job  # noqa: E402
from raykd.plan.prepare import prepare  # noqa: E402
from raykd.plan.trainings import FINETUNE, student_jobs  # noqa: E402
from raykd.search import sweep as driver  # noqa: E402
from raykd.search import tuner  # noqa: E402
from raykd.search.gpu_sharing import GpuSharing  # noqa: E402
from raykd.search.journal import Journal  # noqa: E402
from raykd.search.space import Space  # noqa: E402
from raykd.search.trial_spec import Outcome  # noqa: E402
from raykd.tasks import make_task  # noqa: E402
from raykd.teachers.serving import TeacherModel  # noqa: E402
from raykd.tracking.experiment import Tracking  # noqa: E402
from raykd.tracking.recorder import Recorder  # noqa: E402
from raykd.training import loader as feed  # noqa: E402
from raykd.training.access import TeacherAccess  # noqa: E402
from raykd.training.loop import train  # noqa: E402
from student_step import NO_DROPOUT  # noqa: E402

AT_ONCE = 2
EPOCHS = 3


def tree(data: str, model: str, folder: Path, steps: int, trials: int, teachers: int) -> dict[str, Any]:
    """A sweep of one arm. The teachers are checkpoints of the model with heads of their own."""
    spec = {"pretrained": model, "config": NO_DROPOUT}
    return {
        "name": "bench",
        "output": str(folder / "runs"),
        "task": {"type": "text-classification", "labels": ["negative", "positive"]},
        "data": {
            "source": data,
            "columns": {"text": "sentence"},
            "train": f"train[:{32 * steps // EPOCHS}]",
            "validation": "validation[:64]",
            "test": "validation[64:128]",
        },
        "training": {"steps": steps, "batch_size": 32, "precision": "fp32", "eval_every": max(1, steps // 2)},
        "teachers": [{"name": f"t{i}", "model": str(folder / f"t{i}")} for i in range(teachers)],
        "student": {"model": spec},
        "method": "kd",
        "search": {"trials": trials, "space": {"method.alpha": {"uniform": [0.2, 0.9]}}},
    }


def save_teachers(model: str, folder: Path, config: dict[str, Any], count: int) -> None:
    from raykd.config.schema import ModelConfig, TaskConfig

    task = make_task(TaskConfig.model_validate(config["task"]), config["task"]["labels"])
    opened = open_model(ModelConfig(pretrained=model), task, "model")
    for i in range(count):
        load_model(opened, i).save_pretrained(folder / f"t{i}")  # type: ignore[operator]
        opened.processor.save_pretrained(folder / f"t{i}")


class Bench:
    def __init__(self, given: dict[str, Any]) -> None:
        self.config: Config = build(given)
        space = Space(self.config)
        space.arms = [arm for arm in space.arms if arm.name == "kd"]
        self.sweep = driver.TrialJobs(space, prepare(self.config))
        self.console = Console(file=io.StringIO())

    def explore(
        self, keep_logits: bool = False, most: int | None = AT_ONCE, gpus: float = 0.0
    ) -> tuple[float, float, list[float]]:
        """Seconds of the teacher pass and of the trials, and each trial's own training seconds.

        most: concurrent trials; None: as many as fit.
        gpus: of the cluster.
        """
        config = self.config
        shutil.rmtree(config.store / "trainings", ignore_errors=True)
        if not keep_logits:
            shutil.rmtree(config.store / "logits", ignore_errors=True)
        tracking = Tracking(f"sqlite:///{config.output}/mlflow.db", "bench")
        journal = Journal(config.folder, {}, False)
        (config.folder / "config.yaml").write_text("the benchmark's own\n")  # an artifact of every command's run
        with Recorder(tracking, config, self.sweep.prepared, "sweep") as recorder:
            work = Work(config, self.sweep.prepared, self.console, recorder, gpus)
            self.sweep.teachers, _, _ = stages.train_teachers(work)
            since = time.perf_counter()
            pool = open_pool(work, self.sweep.teachers, None, driver.Count(_quiet(self.console), "", 0))
            try:
                pool.start()
                pool.wait()
                filled = time.perf_counter() - since
                sharing = GpuSharing(config, gpus)
                since = time.perf_counter()
                board = driver.run_trials(
                    work,
                    self.sweep,
                    journal,
                    pool,
                    TeacherAccess(pool.precompute_running),
                    sharing,
                    lambda: driver.at_once(config, sharing.size, False) if most is None else most,
                )
                return filled, time.perf_counter() - since, [t.seconds for t in board.trials]
            finally:
                pool.close()

    def jobs(self, count: int, distils: bool) -> list[Job]:
        config = self.config.model_copy(
            update={"student": self.config.student.model_copy(update={"seed": list(range(100, 100 + count))})}
        )
        method = config.method if distils else FINETUNE
        return student_jobs(config, self.sweep.prepared, method, self.sweep.teachers if distils else ())


def _quiet(console: Console) -> Any:
    from raykd.common.progress import Bars

    return Bars(console, None)


# In bare processes.


def warm() -> None:
    torch.set_num_threads(1)


def plain(job: Job) -> float:
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    since = time.perf_counter()
    for _ in train(job, DistContext()):
        pass
    return time.perf_counter() - since


def with_teachers(job: Job, models: list[Any]) -> float:
    """The loop runs the teachers' models for each batch instead of reading the store."""
    torch.set_num_threads(1)
    loaded = [TeacherModel(served) for served in models]

    def ask(self: feed.StepLoader, positions: np.ndarray) -> np.ndarray:
        columns, folds = self.inputs.encoded[positions], np.full(len(positions), -1)
        return np.stack([np.stack(model.answer(columns, folds)) for model in loaded])

    kept = feed.StepLoader._stored
    feed.StepLoader._stored = ask  # type: ignore[method-assign]
    try:
        return plain(job)
    finally:
        feed.StepLoader._stored = kept  # type: ignore[method-assign]


def in_processes(pool: ProcessPoolExecutor, work: Any, jobs: list[Job], *more: Any) -> float:
    since = time.perf_counter()
    for future in [pool.submit(work, job, *more) for job in jobs]:
        future.result()
    return time.perf_counter() - since


def steps_by_teachers(bench: Bench, counts: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Median over rounds of a short training's time with so many teachers in its loop, against none."""
    times: dict[int, list[float]] = {n: [] for n in counts}
    kd, plain_job = bench.jobs(1, True)[0], bench.jobs(1, False)[0]
    training = kd.training.model_copy(update={"eval_every": 12})
    for _ in range(rounds):
        for n in counts:
            job = dataclasses.replace(kd if n else plain_job, steps=12, training=training)
            models = [bench.sweep.teachers[i % len(bench.sweep.teachers)] for i in range(n)]
            times[n].append(with_teachers(job, models) if n else plain(job))
    return {n: float(np.median(np.array(times[n]) / np.array(times[0]))) for n in counts}


class Instant(tuner.TrialProcess):
    """A trial that ends at once."""

    def step(self) -> dict[str, Any]:
        self.best = 0.5
        return self._result([], Outcome.FINISHED, 100.0) | {"seconds": 0.0}


def thousand(bench: Bench, count: int) -> tuple[float, float, float]:
    """Driver's MB per 1,000 trials, and ms from one trial's end to the next: at the beginning, at the end."""
    ends: list[float] = []
    sizes: list[int] = []
    kept, known = tuner.TrialProcess, Recorder.end_trial
    done = dataclasses.replace(bench.jobs(1, True)[0], steps=2)
    plain(dataclasses.replace(done, keep_model=False))
    made = driver.TrialJobs.job

    def job(self: Any, arm: Any, setting: Any, seed: int, name: str, keep_model: bool) -> Job:
        return dataclasses.replace(done, name=name, keep_model=False)

    def ended(self: Recorder, *given: Any, **named: Any) -> None:
        known(self, *given, **named)
        ends.append(time.perf_counter())
        sizes.append(_rss())

    tuner.TrialProcess, driver.TrialJobs.job, Recorder.end_trial = Instant, job, ended  # type: ignore[misc,method-assign]
    try:
        bench.sweep.space.search = bench.sweep.space.search.model_copy(update={"trials": count})
        bench.config = bench.config.model_copy(update={"search": bench.sweep.space.search})
        ray.cloudpickle.register_pickle_by_value(__import__("__main__"))
        config = bench.config
        journal = Journal(config.folder, {}, False)
        tracking = Tracking(f"sqlite:///{config.output}/mlflow.db", "bench")
        with Recorder(tracking, config, bench.sweep.prepared, "sweep") as recorder:
            work = Work(config, bench.sweep.prepared, bench.console, recorder, 0.0)
            pool = open_pool(work, bench.sweep.teachers, None, driver.Count(_quiet(bench.console), "", 0))
            pool.start()
            driver.run_trials(
                work, bench.sweep, journal, pool, TeacherAccess(), GpuSharing(config, 0.0), lambda: AT_ONCE
            )
            pool.close()
    finally:
        tuner.TrialProcess, driver.TrialJobs.job, Recorder.end_trial = kept, made, known  # type: ignore[misc,method-assign]
    tenth = max(2, count // 10)
    gaps = 1000 * np.diff(ends)
    growth = (np.median(sizes[-tenth:]) - np.median(sizes[tenth : 2 * tenth])) / (0.8 * count) * 1000 / 1e6
    return float(growth), float(np.median(gaps[tenth : 2 * tenth])), float(np.median(gaps[-tenth:]))


def _rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    parser.add_argument("--only", nargs="*", help="some of: limit, steps, overhead, driver")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean nothing")
    given = parser.parse_args()
    quick = given.quick
    steps, trials = (6, 2) if quick else (135, 12)
    parts = given.only or ["limit", "steps", "overhead", "driver"]
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = tree(given.data, given.model, folder, steps, trials, 3)
        save_teachers(given.model, folder, settings, 3)
        bench = Bench(settings)
        context = get_context("spawn")
        with cluster(bench.config, bench.sweep.prepared, bench.console, "sweep"):
            if "limit" in parts:
                found |= limit(bench, context, trials)
            if "steps" in parts:
                bench.sweep.teachers = bench.sweep.teachers or _served(bench)
                ratios = steps_by_teachers(bench, (0, 1, 3, 5), 1 if quick else 5)
                print(
                    "  a step with teachers in the loop, in plain steps: "
                    + ", ".join(f"{n}: {r:.2f}" for n, r in ratios.items())
                )
                found["step_by_in_trial_teachers"] = {str(n): r for n, r in ratios.items()}
            if "overhead" in parts:
                found |= overhead(settings, quick)
            if "driver" in parts:
                bench.sweep.teachers = bench.sweep.teachers or _served(bench)
                mb, first, last = thousand(bench, 20 if quick else 1000)
                print(
                    f"  driver: {mb:.1f} MB per 1,000 trials; from one's end to the next {first:.0f} ms at first, "
                    f"{last:.0f} ms at last"
                )
                found |= {"driver_mb_per_1000_trials": mb, "scheduling_ms_first": first, "scheduling_ms": last}
    print(json.dumps(found))


def _served(bench: Bench) -> list[Any]:
    from raykd.plan.trainings import served_teacher

    config = bench.config
    return [served_teacher(config, bench.sweep.prepared, t, [], "float32") for t in config.teachers]


def limit(bench: Bench, context: Any, trials: int) -> dict[str, Any]:
    half = bench.jobs(trials, False)
    with ProcessPoolExecutor(AT_ONCE, mp_context=context, initializer=warm) as pool:
        in_processes(pool, plain, [dataclasses.replace(j, steps=2) for j in half[:AT_ONCE]])  # imports
        before = in_processes(pool, plain, half[: trials // 2])
        filled, searched, seconds = bench.explore()
        after = in_processes(pool, plain, half[trials // 2 :])
        third = max(AT_ONCE, trials // 3)
        inside = in_processes(pool, with_teachers, bench.jobs(third, True), bench.sweep.teachers) * trials / third
    tuned = before + after
    versus, faster = (filled + searched) / (tuned + filled), inside / (filled + searched)
    print(
        f"  {trials} trials: sweep {filled + searched:.1f} s ({filled:.1f} of them the teacher pass), fine-tunings "
        f"{before:.1f} + {after:.1f} s, with teachers in each trial {inside:.1f} s ({third} of them were run); "
        f"a trial's training {np.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})",
        flush=True,
    )
    print(
        f"  sweep / (fine-tunings + teacher pass): {versus:.3f}; teachers in each trial / sweep: {faster:.3f}",
        flush=True,
    )
    spread = [2 * before / tuned, 2 * after / tuned]
    return {
        "vs_limit": versus,
        "vs_in_trial_teachers": faster,
        "fine_tunings_before_and_after": spread,
        "trial_s": [min(seconds), float(np.median(seconds)), max(seconds)],
    }


def overhead(settings: dict[str, Any], quick: bool) -> dict[str, Any]:
    """One trial at a time, all in one process; the first one starts it."""
    count, steps = (3, 4) if quick else (8, 15)
    shorter = settings | {"training": settings["training"] | {"steps": steps, "eval_every": steps}}
    shorter |= {"name": "overhead", "search": settings["search"] | {"trials": count, "concurrency": 1}}
    bench = Bench(shorter)
    bench.explore(keep_logits=True, most=1)
    lines = [json.loads(line) for line in (bench.config.folder / "sweep.jsonl").read_text().splitlines()]
    ends = [(e["elapsed"], e["trial"]["seconds"]) for e in lines if e.get("trial", {}).get("state") == "finished"]
    extra = [end - before - seconds for (before, _), (end, seconds) in pairwise(ends)]
    value = float(np.median(extra))
    print(
        f"  a warm trial adds {value:.2f} s ({min(extra):.2f} to {max(extra):.2f}) to {ends[-1][1]:.1f} s of training",
        flush=True,
    )
    return {"overhead_s": value, "overhead_s_range": [min(extra), max(extra)]}


if __name__ == "__main__":
    main()
