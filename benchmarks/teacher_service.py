"""How well teachers serve: fills, live answers, replicas, the store's read path, and the first step.

    python benchmarks/teacher_service.py --data ../shared/data/sst2 --model PATH_OR_HUB_ID [--quick]

A fill is measured against a bare loop of the same model over the same batches: both take turns block by
block, so that whatever else the machine does falls on both alike. Where a queue is measured and not a
model (overlap, replicas, first step), the teacher is a paced one: a stand-in that sleeps a set time for
each row, as a teacher on another machine would leave this one's cores alone. It is served by the same
actors through the same pool. The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raykd.environment import set_environment

set_environment()  # before Ray is imported

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from scipy.stats import bootstrap  # noqa: E402
from student_step import job_tree  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from raykd.batches import batch_order, first_epoch, next_batch  # noqa: E402
from raykd.cluster import cluster_gpus  # noqa: E402
from raykd.config import Config  # noqa: E402
from raykd.feed import Feed, Serving  # noqa: E402
from raykd.job import Job  # noqa: E402
from raykd.loading import build  # noqa: E402
from raykd.logits import LogitStore, StoredLogits, TeacherKey, TeacherLogits  # noqa: E402
from raykd.methods import Method  # noqa: E402
from raykd.plan import FINETUNE, served_teacher, student_jobs  # noqa: E402
from raykd.prediction import ROWS_ON_CPU, autocast  # noqa: E402
from raykd.prepare import Prepared, prepare  # noqa: E402
from raykd.ranks import Ranks, local_device  # noqa: E402
from raykd.student import train  # noqa: E402
from raykd.teachers.blocks import Pupil  # noqa: E402
from raykd.teachers.live import Directory  # noqa: E402
from raykd.teachers.pool import TeacherPool  # noqa: E402
from raykd.teachers.serving import ServedTeacher, TeacherModel  # noqa: E402

BLOCK_ROWS, GPU_BLOCK_ROWS = 256, 2048  # of a fill that is compared with a bare loop
BATCH = 32
WARM_BLOCKS = 1
IN_FLIGHT = 4
LOAD_SECONDS = 300.0  # longest wait of a paced teacher for the others
KD = Method(type="kd", alpha=0.5, temperature=2.0)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


# Teachers that are served as any other, and differ in their model.


@dataclasses.dataclass(frozen=True)
class PacedTeacher(ServedTeacher):
    """Sleeps for its rows. meeting: a folder where `parties` files must be before the first replica is loaded."""

    row_seconds: float = 0.0
    meeting: str = ""
    parties: int = 1

    def load(self, num_gpus: float) -> TeacherModel:
        if self.meeting:
            meet(self.meeting, str(os.getpid()), self.parties)
        return PacedModel(self)


class PacedModel(TeacherModel):
    def __init__(self, served: PacedTeacher) -> None:
        self.row_seconds, self.meeting, self.halved = served.row_seconds, served.meeting, 0
        self.started = False

    def logits(self, folders: Sequence[Path], positions: np.ndarray, folds: np.ndarray) -> list[np.ndarray]:
        if self.meeting and not self.started:
            Path(self.meeting, f"{os.getpid()}.started").write_text(repr(time.time()))
        self.started = True
        return self._pace(len(positions))

    def answer(self, columns: Mapping[str, Any], folds: np.ndarray) -> list[np.ndarray]:
        return self._pace(len(folds))

    def _pace(self, rows: int) -> list[np.ndarray]:
        time.sleep(self.row_seconds * rows)
        return list(np.zeros((rows, 1, 2), np.float16))


@dataclasses.dataclass(frozen=True)
class TurnTeacher(ServedTeacher):
    """The real model, which waits for its turn before each block."""

    turns: Any = None

    def load(self, num_gpus: float) -> TeacherModel:
        return TurnModel(self, num_gpus)


class TurnModel(TeacherModel):
    def __init__(self, served: TurnTeacher, num_gpus: float) -> None:
        super().__init__(served, num_gpus)
        self.turns = served.turns

    def logits(self, folders: Sequence[Path], positions: np.ndarray, folds: np.ndarray) -> list[np.ndarray]:
        ray.get(self.turns.take.remote("fill"))
        return super().logits(folders, positions, folds)


def variant(kind: type[ServedTeacher], served: ServedTeacher, weights: str, **more: Any) -> Any:
    """The teacher as another kind, with logits of its own in the store."""
    known = {f.name: getattr(served, f.name) for f in dataclasses.fields(served)} | {"digests": (weights,)}
    return kind(**known, **more)


def meet(folder: str, name: str, parties: int) -> None:
    Path(folder, f"{name}.here").touch()
    limit = time.monotonic() + LOAD_SECONDS
    while len(list(Path(folder).glob("*.here"))) < parties and time.monotonic() < limit:
        time.sleep(0.01)


def started(folder: str) -> float:
    """When a loaded replica was handed its first block."""
    return min(float(path.read_text()) for path in Path(folder).glob("*.started"))


class Turns:
    """Lets one of two processes work at a time, a block each. A block's time ends when its process asks again."""

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
    """The same model and batches without raykd around them: rows in memory, padded, forward, logits to the CPU."""

    def __init__(self, served: ServedTeacher, num_gpus: float, folder: Path) -> None:
        torch.set_num_threads(1)
        loaded = TeacherModel(served, num_gpus)
        self.model, self.device, self.budget = loaded.models[0], loaded.device, served.batch_tokens
        self.dtype = served.dtype
        self.most_rows = ROWS_ON_CPU if self.device.type == "cpu" else served.batch_tokens
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
                chosen = next_batch(order, lengths, start, self.budget, self.most_rows)
                start += len(chosen)
                ids = positions[chosen]
                inputs = {n: self._padded([c[i] for i in ids]) for n, c in self.columns.items()}
                ones = [torch.ones(n, dtype=torch.long) for n in lengths[chosen]]
                self.model(**inputs, attention_mask=self._padded(ones)).logits.float().cpu()
        ray.get(turns.take.remote("bare"))

    def _padded(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)


class Bench:
    """The data and the teacher, prepared once."""

    def __init__(self, data: str, model: str, folder: str, blocks: int, steps: int) -> None:
        self.device = local_device(1)
        on_gpu = self.device.type == "cuda"
        self.block_rows = GPU_BLOCK_ROWS if on_gpu else BLOCK_ROWS
        self.dtype = "bfloat16" if on_gpu else "float32"  # as raykd chooses itself
        tree = job_tree(data, model, self.block_rows * blocks // BATCH, folder)
        tree["training"] |= {"steps": steps, "eval_every": steps}
        self.folder, self.config = folder, build(tree)
        self.prepared: Prepared = prepare(self.config)
        self.gpus = cluster_gpus()
        self.share = 0.5 if self.gpus else 0.0  # a real teacher's GPU, half of it: a bare loop has the other
        encoded = self.prepared.teachers["t0"].splits["train"]
        self.train_folder = encoded.folder
        self.lengths = np.asarray(encoded.open().select_columns("length")[:]["length"])
        self.order = first_epoch(self.lengths, BATCH, 0, True)

    def configured(self, block_rows: int | None = None, mode: str = "stored") -> Config:
        rows = block_rows or self.block_rows
        logits = self.config.logits.model_copy(update={"block_rows": rows, "mode": mode})
        return self.config.model_copy(update={"logits": logits})

    def served(self, teacher: int = 0) -> ServedTeacher:
        pretrained = self.config.student.model.pretrained
        assert pretrained is not None
        return served_teacher(self.config, self.prepared, self.config.teachers[teacher], [pretrained], self.dtype)

    def pupil(
        self, served: ServedTeacher, order: np.ndarray | None, gpus: float, replicas: int = 1, split: str = "train"
    ) -> Pupil:
        teacher = next(t for t in self.config.teachers if t.name == served.name)
        teacher = teacher.model_copy(update={"num_gpus": gpus, "replicas": replicas})
        splits = {split: (self.prepared.splits[split], self.prepared.teachers[served.name].splits[split])}
        return Pupil(teacher, served, splits, 1, order)

    def pool(self, pupils: list[Pupil], config: Config, heard: Callable[[Any], None], directory: Any = None) -> Any:
        return TeacherPool(pupils, config.logit_store, config, self.gpus, heard, directory)

    def meeting(self) -> str:
        return tempfile.mkdtemp(dir=self.folder)


def middle(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95% bootstrap interval."""
    values = np.asarray(ratios)
    found = bootstrap((values,), np.median, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
    return float(np.median(values)), *map(float, found.confidence_interval)  # type: ignore[return-value]


def filling(bench: Bench) -> dict[str, Any]:
    """A fill and a bare loop, in turns."""
    turns = ray.remote(Turns).options(num_cpus=0, max_concurrency=8).remote()
    served = bench.served()
    bare = ray.remote(Bare).options(num_cpus=1, num_gpus=bench.share).remote(served, bench.share, bench.train_folder)
    order, size = bench.order, bench.block_rows
    work = bare.run.remote([order[i : i + size] for i in range(0, len(order), size)], turns)
    taught = variant(TurnTeacher, served, "fill", turns=turns)
    pool = bench.pool([bench.pupil(taught, order, bench.share)], bench.configured(), lambda p: None)
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


def step_seconds(job: Job, device: torch.device, serving: Serving) -> float:
    """Seconds from when the first step's rows are asked for to the end of the last step."""
    shutil.rmtree(job.folder, ignore_errors=True)  # its checkpoint
    looks: list[float] = []
    ends: list[float] = []

    def stop() -> bool:
        """Asked before the first step waits, and later too."""
        looks.append(time.perf_counter())
        return False

    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        for event in train(job, Ranks(device=device), stop, serving):
            if event["event"] == "evaluation":
                break
    finally:
        hook.remove()
    return ends[-1] - looks[0]


def teacher_seconds(bench: Bench, job: Job, serving: Serving) -> float:
    """Seconds of the same steps' requests and answers, with nobody who trains."""
    rows = datasets.concatenate_datasets([e.open() for e in job.train])
    member = bench.prepared.student
    ranks = Ranks(device=bench.device)
    feed = Feed(job, rows, bench.prepared.task, member.processor, job.seed, None, ranks, lambda: False, serving)
    order = batch_order(bench.lengths, BATCH, job.seed, job.training.group_by_length)
    since = time.perf_counter()
    for _ in feed.steps(np.arange(len(rows)), order, 0, job.steps, lambda step: True):
        pass
    return time.perf_counter() - since


def mixed(job: Job) -> Job:
    """With batches of rows of any length."""
    return dataclasses.replace(job, training=job.training.model_copy(update={"group_by_length": False}))


def overlap(bench: Bench, repeats: int) -> dict[str, Any]:
    """Live steps against the slower of student and teacher. The runs take turns; each has the same batches.

    One step of the faster of the two is taken off first: before the first answer, or after the last one,
    nothing can overlap. Batches are not of rows of like length: a student's step on those takes 0.2 to 2.6 s, and
    how many long ones come last, when no teacher is waited for, would be measured. Paced teachers answer requests
    one by one: several that go together, as a real teacher answers those that wait, come together too, which in a
    run this short looks like a slow start and a slow end.
    """
    config = bench.configured(mode="live")
    plain = mixed(student_jobs(bench.configured(), bench.prepared, FINETUNE, ())[0])
    timed = plain.steps
    step_seconds(plain, bench.device, Serving())  # the first one is slow
    before = step_seconds(plain, bench.device, Serving())
    paces = {"slower": 1.25 * before / timed, "faster": 0.75 * before / timed}
    one_by_one = [dataclasses.replace(bench.served(i), batch_tokens=1) for i in (0, 1)]
    served = {
        "slower": variant(PacedTeacher, one_by_one[0], "slower", row_seconds=paces["slower"] / BATCH),
        "faster": variant(PacedTeacher, one_by_one[1], "faster", row_seconds=paces["faster"] / BATCH),
        "real": variant(ServedTeacher, bench.served(2), "real"),
    }
    jobs = {kind: mixed(student_jobs(config, bench.prepared, KD, [teacher])[0]) for kind, teacher in served.items()}
    directory = Directory.remote()  # type: ignore[attr-defined]
    gpus = {"slower": 0.0, "faster": 0.0, "real": bench.share}
    pupils = [bench.pupil(teacher, None, gpus[kind], split="validation") for kind, teacher in served.items()]
    pool = bench.pool(pupils, config, lambda p: None, directory)
    serving = Serving(pool.filling, directory, IN_FLIGHT)
    ratios: dict[str, list[float]] = {kind: [] for kind in jobs}
    alone = []
    try:
        pool.start()
        pool.wait()
        for _ in range(repeats):
            live = {kind: step_seconds(job, bench.device, serving) for kind, job in jobs.items()}
            after = step_seconds(plain, bench.device, Serving())
            student, before = (before + after) / 2, after
            alone.append(student / timed)
            for kind, seconds in live.items():
                teacher = paces[kind] * timed if kind in paces else teacher_seconds(bench, jobs[kind], serving)
                ratios[kind].append((seconds - min(student, teacher) / timed) / max(student, teacher))
    finally:
        pool.close()
    shown = {kind: (float(np.median(r)), min(r), max(r)) for kind, r in ratios.items()}
    print(f"  student alone: {np.median(alone) * 1000:.1f} ms a step; {repeats} x {timed} steps of {BATCH} rows")
    for kind, (value, low, high) in shown.items():
        about = f"paced, {paces[kind] * 1000:.0f} ms a step" if kind in paces else "a real one beside it"
        print(f"  live step / max(student, teacher), {kind} teacher ({about}): {value:.4f} ({low:.4f} to {high:.4f})")
    worst = max(("slower", "faster"), key=lambda kind: shown[kind][0])
    return {
        "overlap": shown[worst][0],
        "overlap_range": list(shown[worst][1:]),
        "overlap_slower_teacher": shown["slower"][0],
        "overlap_faster_teacher": shown["faster"][0],
        "overlap_real": shown["real"][0],
        "overlap_real_range": list(shown["real"][1:]),
    }


def scaling(bench: Bench, repeats: int, block_seconds: float = 0.5, rows: int = 32, blocks: int = 12) -> dict[str, Any]:
    """Rows a second of a paced teacher's fill, from the first block's start: four replicas against one."""
    config = bench.configured(rows)

    def rate(replicas: int, repeat: int) -> float:
        folder, order = bench.meeting(), bench.order[: rows * blocks * replicas]
        name = f"{replicas} replicas, {repeat}"
        pace = {"row_seconds": block_seconds / rows, "meeting": folder, "parties": replicas}
        served = variant(PacedTeacher, bench.served(), name, **pace)
        ends: list[float] = []
        pupil = bench.pupil(served, order, 0.0, replicas)
        pool = bench.pool([pupil], config, lambda p: ends.append(time.time()))
        try:
            pool.start()
            pool.wait()
        finally:
            pool.close()
        return len(order) / (ends[-1] - started(folder))

    pairs = [(rate(1, i), rate(4, i)) for i in range(repeats)]
    ratios = [four / one for one, four in pairs]
    value = float(np.median(ratios))
    print(
        f"  4 replicas / 1 (paced, {block_seconds:g} s a block of {rows}): {value:.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}); {np.median([p[1] for p in pairs]):.0f} and {np.median([p[0] for p in pairs]):.0f} rows/s"
    )
    return {"scaling_4": value, "scaling_4_range": [min(ratios), max(ratios)]}


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def made_up_keys() -> list[TeacherKey]:
    return [TeacherKey(f"made up {i}", "none", "none", "float32", about={"name": f"m{i}"}) for i in range(3)]


def write_store(folder: str, ids: np.ndarray) -> None:
    for i, key in enumerate(made_up_keys()):
        store, rng = TeacherLogits(LogitStore.at(folder), key), np.random.default_rng(i)
        for start in range(0, len(ids), 1024):
            part = ids[start : start + 1024]
            store.add(part, part, list(rng.normal(size=(len(part), 2, 384)).astype(np.float16)))


def read_store(folder: str, ids: np.ndarray) -> tuple[list[float], int]:
    """In a fresh process: seconds of each batch, and the memory that reading all rows has taken."""
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


def first_step(bench: Bench, block_seconds: float, blocks: int, rows: int = 256) -> dict[str, Any]:
    """From a cold store: a student that is ready waits for the first block of a paced teacher."""
    config, folder = bench.configured(rows), bench.meeting()
    pace = {"row_seconds": block_seconds / rows, "meeting": folder, "parties": 2}
    served = variant(PacedTeacher, bench.served(), "first step", **pace)
    job = student_jobs(config, bench.prepared, KD, [served])[0]
    blocks_end: list[float] = []
    pupil = bench.pupil(served, bench.order[: rows * blocks], 0.0)
    pool = bench.pool([pupil], config, lambda p: blocks_end.append(time.time()))
    steps_end: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps_end.append(time.time()))

    def stop() -> bool:
        """Asked when the student is ready for a step's logits."""
        Path(folder, "student.here").touch()
        return bool(steps_end)

    try:
        pool.start()
        for _ in train(job, Ranks(device=bench.device), stop, Serving(pool.filling)):
            pass
        pool.wait()
    finally:
        hook.remove()
        pool.close()
    begun = started(folder)
    first, filled = steps_end[0] - begun, blocks_end[-1] - begun
    print(
        f"  first step {first:.2f} s after the start of a fill (paced, {block_seconds:g} s a block of {rows} rows) "
        f"that took {filled:.2f} s"
    )
    return {"first_step_s": first, "block_s": block_seconds, "fill_s": filled}


def gpu_rates(bench: Bench, size: int) -> dict[str, Any]:
    """Three teachers on a quarter of a GPU each fill the store beside a student that trains on it.

    Rows a second of the teachers together and of the student while both are at work, and the share of the GPU's
    bf16 peak that the teachers' forward passes are; the peak is measured, by products of size x size matrices.
    """
    config, on_gpu = bench.configured(1024), bench.device.type == "cuda"
    served = [variant(ServedTeacher, bench.served(i), f"gpu {i}") for i in range(3)]
    job = student_jobs(config, bench.prepared, KD, served)[0]
    shutil.rmtree(job.folder, ignore_errors=True)
    pool = bench.pool([bench.pupil(s, bench.order, 0.25 * on_gpu) for s in served], config, lambda p: None)
    steps: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(time.perf_counter()))
    try:
        pool.start()
        for _ in train(job, Ranks(device=bench.device), pool.filled.is_set, Serving(pool.filling)):
            pass
        pool.wait()
    finally:
        hook.remove()
        pool.close()
    teachers = sum(p.computed / p.took for p in pool.progress)
    student = BATCH * (len(steps) - 1) / max(steps[-1] - steps[0], 1e-9)

    model = TeacherModel(bench.served()).models[0]
    ids = torch.ones((1, round(bench.lengths.mean())), dtype=torch.long)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=ids)
    a = torch.randn((size, size), device=bench.device, dtype=getattr(torch, bench.dtype))
    times = []
    for _ in range(8):
        since = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for it
        times.append(time.perf_counter() - since)
    peak = 2 * size**3 / min(times)
    share = teachers * counter.get_total_flops() / peak
    print(
        f"  3 teachers and a student on {torch.cuda.get_device_name() if on_gpu else 'the CPU'}: teachers "
        f"{teachers:.0f} rows/s in all, student {student:.0f}; {share:.1%} of {peak / 1e12:.3g} TFLOP/s ({bench.dtype})"
    )
    return {"gpu_teachers_rows_s": teachers, "gpu_student_rows_s": student, "gpu_share_of_peak": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    parser.add_argument("--only", nargs="*", help="some of: fill, overlap, scaling, gather, first, gpu")
    parser.add_argument("--quick", action="store_true", help="few repeats, within two minutes")
    given = parser.parse_args()
    quick = given.quick
    torch.set_num_threads(1)
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="warning")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, 1 thread each, torch {torch.__version__}, ray {ray.__version__}"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            steps = 2 if quick else 24
            steps *= 10 if torch.cuda.is_available() else 1  # a GPU takes 24 in a moment
            bench = Bench(given.data, given.model, folder, 4 if quick else 32, steps)
            parts: dict[str, Callable[[], dict[str, Any]]] = {
                "fill": lambda: filling(bench),
                "overlap": lambda: overlap(bench, 1 if quick else 2),
                "scaling": lambda: scaling(bench, 1 if quick else 3),
                "gather": lambda: gather(bench.meeting()),
                "first": lambda: first_step(bench, 1.0 if quick else 2.0, 4 if quick else 8),
            }
            if torch.cuda.is_available() or "gpu" in (given.only or ()):  # by name also on CPUs: does it run?
                parts["gpu"] = lambda: gpu_rates(bench, 8192 if torch.cuda.is_available() else 512)
            found: dict[str, Any] = {}
            for name, measure in parts.items():
                if not given.only or name in given.only:
                    since = time.monotonic()
                    found |= measure()
                    print(f"    ({name}: {time.monotonic() - since:.0f} s)", flush=True)
            print(json.dumps(found))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
