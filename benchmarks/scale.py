"""Which part gives out first at 100 replicas, 1,000 trials and 10 million rows: what a unit costs, and a model of it.

    python benchmarks/scale.py [--quick] [--only rows index store pool gcs mlflow]

Every cost is of raykd's own code on this machine, at two or three sizes each, so that what grows faster than its
size shows. Seconds of one process's work are of its CPU; where disks, servers or actors take part, of the clock.
Where memory is measured the code runs in a process of its own. The teachers are stand-ins that sleep (the queue is
measured and not a model); the logits are of one decision over two classes, the smallest there are, so that what is
per row and per file is not hidden by what is per byte.

- rows: reading, identifying and encoding raw rows.
- index: encoded rows: their ids, the blocks to be computed (in the driver), the rows of a block (in a replica).
- store: writing and opening blocks, what a replica checks before each, a student's reader; folders of many files;
  how many blocks a process can map.
- pool: the driver's thread, per block, with more and more replicas.
- gcs: actors made and named; the directory of live teachers.
- mlflow: what a trial costs the driver on sqlite, on a server over sqlite and over PostgreSQL (if it is installed,
  with psycopg2 on the path); the report of 1,000 trials.

What a trial costs in Tune, the board and the journal is in `sweep.py` (driver_mb_per_1000_trials, scheduling_ms).
The last line is one JSON object.
"""

import argparse
import contextlib
import dataclasses
import gzip
import inspect
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raykd.environment import set_environment

set_environment()  # before Ray is imported

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from raykd import prediction  # noqa: E402
from raykd.config import TaskConfig  # noqa: E402
from raykd.data import load_splits  # noqa: E402
from raykd.encoding import Encoded, encode, id_column, save_atomically  # noqa: E402
from raykd.hashing import digest  # noqa: E402
from raykd.loading import build, load  # noqa: E402
from raykd.logits import LogitStore, TeacherLogits  # noqa: E402
from raykd.logits.folder import Folder  # noqa: E402
from raykd.models import load_processor  # noqa: E402
from raykd.plan import FINETUNE, student_jobs  # noqa: E402
from raykd.prepare import prepare  # noqa: E402
from raykd.progress import Bars  # noqa: E402
from raykd.recorder import Recorder  # noqa: E402
from raykd.report import report  # noqa: E402
from raykd.report.locate import find_run, open_store  # noqa: E402
from raykd.report.read import read  # noqa: E402
from raykd.targets import open_logits  # noqa: E402
from raykd.tasks import make_task  # noqa: E402
from raykd.teachers import pool as pool_module  # noqa: E402
from raykd.teachers.blocks import Pupil, missing_blocks  # noqa: E402
from raykd.teachers.live import directory_here  # noqa: E402
from raykd.teachers.pool import TeacherPool  # noqa: E402
from raykd.teachers.serving import ServedTeacher, TeacherModel  # noqa: E402
from raykd.tracking import Tracking  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # for tiny models and made-up experiments
BLOCK_ROWS = 1024  # rows a block, unless the config says otherwise
MILLION = 1_000_000
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Its result, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def memory(name: str) -> float:
    """This process's bytes: RssAnon, its own; VmHWM, the most that it had since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> float:
    """The bytes from which the peak is counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmHWM")


def seconds(work: Callable[[], Any], repeats: int = 1, clock: Callable[[], float] = time.process_time) -> float:
    """The median of some; of CPU, the system's part too, so that what else runs here disturbs it little."""
    times = []
    for _ in range(repeats):
        since = clock()
        work()
        times.append(clock() - since)
    return float(np.median(times))


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(f"  {text}", flush=True)


# Raw rows: read, identified by content, encoded.


def text_job(folder: Path, source: Path, kind: str) -> dict[str, Any]:
    from tiny import electra, save_tokenizer  # type: ignore[import-not-found]

    model = {"config": electra(), "tokenizer": str(save_tokenizer(folder / "tokenizer"))}
    task: dict[str, Any] = {"type": kind, "max_length": 32}
    if kind == "text-classification":
        task["labels"] = ["bad", "good"]
    return {
        "name": "rows",
        "output": str(folder / "runs"),
        "task": task,
        "data": {"source": str(source), "train": "train[64:]", "validation": "train[:32]", "test": "train[32:64]"},
        "training": {"steps": 1},
        "teachers": [{"name": "a", "model": model, "recipe": {"seed": 1}}],
        "student": {"model": model},
    }


def write_texts(folder: Path, rows: int) -> Path:
    """Sentences of ten words, 55 characters, each another one."""
    from tiny import WORDS

    words = np.array(WORDS)[np.random.default_rng(0).integers(0, len(WORDS), (rows, 9))]
    texts = [f"{' '.join(w)} {i:08d}" for i, w in enumerate(words)]
    return _written(folder, {"text": texts, "label": np.arange(rows) % 2})


def write_questions(folder: Path, rows: int) -> Path:
    """SQuAD's format and sizes: contexts of 750 characters, five questions on each."""
    from tiny import WORDS

    rng = np.random.default_rng(0)
    contexts = [f"{i:08d} {' '.join(rng.choice(WORDS, 150))}"[:750] for i in range(rows // 5 + 1)]
    table = {
        "id": [f"q{i}" for i in range(rows)],
        "title": [f"t{i // 50}" for i in range(rows)],
        "context": [contexts[i // 5] for i in range(rows)],
        "question": [f"where does {i} live , who is it and what does it do there ?" for i in range(rows)],
        "answers": [{"text": [contexts[i // 5][:8]], "answer_start": [0]} for i in range(rows)],
    }
    return _written(folder, table)


def _written(folder: Path, table: Mapping[str, Any]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table(dict(table)), folder / "train.parquet")
    return folder


def reading(folder: Path, rows: int, kind: str) -> dict[str, float]:
    """Seconds and MB a million rows of the driver's first steps; `encode` in one process."""
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
        processor = load_processor(config.student.model, task, "student.model")
        before = forget_peak()
        found["encode_s"] = seconds(lambda: encode(splits["train"], task, processor, config.store, 1))
        found["encode_peak_mb"] = (memory("VmHWM") - before) / 1e6
    return {name: value / rows * MILLION for name, value in found.items()}


def part_rows(folder: Path, quick: bool) -> dict[str, Any]:
    datasets.disable_progress_bars()
    found = {}
    for kind, sizes in {"text-classification": (100_000, 200_000), "question-answering": (20_000, 60_000)}.items():
        for rows in sizes[:1] if quick else sizes:
            place = folder / f"{kind}-{rows}"
            place.mkdir()
            got = apart(reading, place, rows // 10 if quick else rows, kind)
            found[f"{kind}_{rows}"] = got
            say(f"{kind}, {rows:,} rows; a million of them: {_listed(got)}")
    return found


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


# Encoded rows, as `encode` writes them, of any number and made in no time.


def made_encoded(folder: Path, rows: int) -> Encoded:
    """Short texts: 12 tokens. Row ids and input hashes are random, as hashes are."""
    rng, step = np.random.default_rng(rows), 100_000
    path = folder / f"encoded-{rows}"

    def flat(values: np.ndarray, width: int, kind: Any) -> pa.Array:
        offsets = pa.array(np.arange(0, len(values) + 1, width, dtype=np.int32))
        if kind is pa.binary():
            buffers = [None, offsets.buffers()[1], pa.py_buffer(values)]
            return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)
        return pa.ListArray.from_arrays(offsets, pa.array(values))

    tables = []
    for start in range(0, rows, step):
        n = min(step, rows - start)
        tables.append(
            pa.table(
                {
                    "input_ids": flat(rng.integers(0, 60, 12 * n, dtype=np.int32), 12, None),
                    "labels": flat(rng.integers(0, 2, n), 1, None),
                    "length": np.full(n, 12, np.int64),
                    "window": np.zeros(n, np.int64),
                    "example": np.arange(start, start + n),
                    "row_id": flat(rng.integers(0, 256, 16 * n, dtype=np.uint8), 16, pa.binary()),
                    "input_hash": flat(rng.integers(0, 256, 16 * n, dtype=np.uint8), 16, pa.binary()),
                }
            )
        )
    datasets.disable_progress_bars()
    save_atomically(datasets.Dataset(pa.concat_tables(tables)), path)
    return Encoded(path, str(rows))


def served(name: str = "a", kind: type[ServedTeacher] = ServedTeacher, **more: Any) -> Any:
    task = TaskConfig.model_validate({"type": "text-classification", "labels": ["bad", "good"]})
    about: dict[str, Any] = {
        "task": task,
        "label_names": ("bad", "good"),
        "models": (),
        "digests": (name,),
        "batch_tokens": 1,
    }
    return kind(name=name, processor="p", preprocessing="s", dtype="float32", **about, **more)


def pupil(encoded: Encoded, rows: int, replicas: int = 1, teacher: ServedTeacher | None = None) -> Pupil:
    config: Any = SimpleNamespace(
        name="a", replicas=replicas, num_cpus=0.01, num_gpus=0.0, accelerator=None, node_labels={}, placement="pack"
    )
    split: Any = SimpleNamespace(ids=np.zeros((0, 16), np.uint8))  # of raw rows: asked for by folds alone
    order = np.random.default_rng(0).permutation(rows)
    return Pupil(config, teacher or served(), {"train": (split, encoded)}, 1, order)


class NoModel(TeacherModel):
    """Fetches a block's rows as any other, and knows their logits."""

    def __init__(self, taught: ServedTeacher) -> None:
        self.served, self.task = taught, make_task(taught.task, taught.label_names)
        self.device, self.processor, self.models, self.halved = torch.device("cpu"), None, [], 0


def fetching(encoded: Encoded, rows: int) -> float:
    """Milliseconds in which a replica has the rows of a block, in a split that it has opened before."""
    model, known = NoModel(served()), prediction.forward
    prediction.forward = lambda models, task, columns, *_: list(np.zeros((len(columns["length"]), 1, 2), np.float16))
    try:
        positions = np.random.default_rng(0).permutation(rows)[: 4 * BLOCK_ROWS].reshape(4, BLOCK_ROWS)
        folds = np.full(BLOCK_ROWS, -1)
        times = [seconds(partial(model.logits, (encoded.folder,), chosen, folds)) for chosen in positions]
    finally:
        prediction.forward = known
    return 1000 * float(np.median(times[1:]))


def planning(folder: Path, encoded: Encoded, rows: int) -> dict[str, float]:
    """What the driver does with teachers' encoded rows; MB a million of them and teacher."""
    found = {"open_s": seconds(encoded.open, 3)}
    opened = encoded.open()
    before = forget_peak()
    found["ids_s"] = seconds(lambda: id_column(opened, "row_id"))
    found["ids_peak_mb"] = (memory("VmHWM") - before) / 1e6 / rows * MILLION
    one, stored = pupil(encoded, rows), TeacherLogits(folder / "none", served().key)
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


def part_index(folder: Path, quick: bool) -> dict[str, Any]:
    found = {}
    for rows in (30_000, 100_000) if quick else (MILLION, 3 * MILLION):
        encoded = made_encoded(folder, rows)
        found[str(rows)] = apart(planning, folder, encoded, rows)
        say(f"{rows:,} encoded rows: {_listed(found[str(rows)])}")
        shutil.rmtree(encoded.folder)
    return found


# The store: blocks, files, readers.


def fill(store: Path, ids: np.ndarray, hashes: np.ndarray) -> float:
    """Seconds a block, written as a replica does: whole and safe from a power cut."""
    teacher = TeacherLogits(store, served().key)
    since, blocks = time.perf_counter(), range(0, len(ids), BLOCK_ROWS)
    for start in blocks:
        part = slice(start, start + BLOCK_ROWS)
        teacher.add(ids[part], hashes[part], list(np.zeros((len(ids[part]), 1, 2), np.float16)))
    return (time.perf_counter() - since) / len(blocks)


def replica_check(store: Path, seed: int) -> dict[str, float]:
    """What a process pays that opens the store, and a replica for each block before it computes.

    check_ms: as a replica looks, which passes over what its own fill knows; check_all_ms: as it did before, and does
    where all that is stored is of others who began later.
    """
    since = time.process_time()
    whole = TeacherLogits(store, served().key)
    found = {"open_first_s": time.process_time() - since}
    replica = whole
    if "passing_over" in inspect.signature(TeacherLogits).parameters:  # else it is an older raykd that is measured
        replica = TeacherLogits(store, served().key, [*whole.blocks])
    rng = np.random.default_rng(seed)
    for name, teacher in (("check_ms", replica), ("check_all_ms", whole)):
        new = [rng.integers(0, 256, (BLOCK_ROWS, 16), dtype=np.uint8) for _ in range(5)]
        found[name] = 1000 * float(np.median([seconds(partial(teacher.missing, ids, ids)) for ids in new]))
    return found | {"list_ms": 1000 * seconds(whole.files.names, 5)}


def reader(store: Path, encoded: Encoded, teachers: int) -> dict[str, float]:
    """A student's: as `raykd.student` opens it, after another training of this process has."""
    stored = [SimpleNamespace(key=served().key, rows=(encoded.folder,)) for _ in range(teachers)]
    job: Any = SimpleNamespace(
        method=SimpleNamespace(distils=True), live=False, teachers=stored, logits=LogitStore.at(store)
    )
    rows = encoded.open()
    open_logits(job, rows)
    before, own = forget_peak(), memory("RssAnon")
    since = time.process_time()
    opened = open_logits(job, rows)
    found = {"open_s": time.process_time() - since}
    assert opened is not None
    assert opened.complete
    n = len(opened)
    found["kept_mb"] = (memory("RssAnon") - own) / 1e6 / n * MILLION
    found["peak_mb"] = (memory("VmHWM") - before) / 1e6 / n * MILLION
    rng = np.random.default_rng(0)
    found["batch_us"] = 1e6 * seconds(lambda: opened[rng.integers(0, n, 32)], 200)
    return found


def listing(folder: Path, files: int) -> float:
    """Milliseconds to list a teacher's folder."""
    place = folder / f"listed-{files}"
    place.mkdir()
    for i in range(files):
        (place / f"{digest(b'%d' % i).hex()}.block").touch()
    return 1000 * seconds(Folder(place).names, 5)


def mapping(folder: Path, blocks: int) -> dict[str, Any]:
    """How many blocks one process can map, and what it says then. The blocks are links to one file: that counts."""
    files = TeacherLogits(folder / "maps", served().key)
    ids = np.random.default_rng(0).integers(0, 256, (2, 16), dtype=np.uint8)
    block = files.add(ids, ids, list(np.zeros((2, 1, 2), np.float16)))
    for i in range(blocks):
        copy = block.with_name(f"{digest(b'%d' % i).hex()}.block")
        if i % 60_000 == 0:  # ext4 allows 65,000 links to a file
            shutil.copy(block, copy)
            source = copy
        else:
            os.link(source, copy)
    said = ""
    since = time.process_time()
    try:
        files.refresh(always=True)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    mapped = len(files.blocks)
    files.blocks.clear()
    return {"asked": blocks, "mapped": mapped, "seconds": time.process_time() - since, "said": said}


def part_store(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    store, done = folder / "store", 0
    sizes = (20_480, 40_960) if quick else (MILLION, 3 * MILLION)
    whole = made_encoded(folder, sizes[-1]).open()
    ids, hashes = id_column(whole, "row_id"), id_column(whole, "input_hash")
    for rows in sizes:
        place = folder / f"first-{rows}"
        save_atomically(whole.select(range(rows)), place)
        add = fill(store, ids[done:rows], hashes[done:rows])
        done = rows
        got = {"add_ms": 1000 * add} | apart(replica_check, store, rows)
        say(f"a store of {rows:,} rows: {_listed(got)}")
        found[str(rows)] = got
        for teachers in (1, 3):
            read_by = apart(reader, store, Encoded(place, ""), teachers)
            say(f"a student's reader of {rows:,} rows, {teachers} teacher(s): {_listed(read_by)} (MB a million rows)")
            found[f"{rows}_{teachers}"] = read_by
    folder_sizes = (1000, 4000) if quick else (10_000, 40_000)
    found["list_ms"] = {str(n): listing(folder, n) for n in folder_sizes}
    say(f"to list a folder of so many blocks, ms: {_listed(found['list_ms'])}")
    found["maps"] = apart(mapping, folder, 500 if quick else 66_000)
    say(f"blocks that one process maps: {found['maps']}")
    return found


# The driver's thread, with the replicas that it looks after.


@dataclasses.dataclass(frozen=True)
class SleepingTeacher(ServedTeacher):
    """Sleeps for each block: what is measured is who looks after it."""

    block_seconds: float = 0.0

    def load(self, num_gpus: float) -> TeacherModel:
        return SleepingModel(self)


class SleepingModel(TeacherModel):
    def __init__(self, taught: SleepingTeacher) -> None:
        self.block_seconds, self.halved = taught.block_seconds, 0

    def logits(self, folders: Sequence[Path], positions: np.ndarray, folds: np.ndarray) -> list[np.ndarray]:
        time.sleep(self.block_seconds)
        return list(np.zeros((len(positions), 1, 2), np.float16))


class WatchedPool(TeacherPool):
    """cpu: seconds of the pool's own thread, from when all replicas were there."""

    cpu = 0.0

    def _run(self) -> None:
        super()._run()
        self.cpu = time.thread_time()


def filling(folder: Path, replicas: int, blocks: int, rate: float) -> dict[str, float]:
    """Driver's CPU a block. rate: blocks a second, of all replicas."""
    rows_a_block = 16
    encoded = made_encoded(folder, blocks * rows_a_block + replicas)
    teacher = served(f"sleeping-{replicas}", SleepingTeacher, block_seconds=replicas / rate)
    tree = text_job(folder, ROOT, "text-classification") | {"logits": {"block_rows": rows_a_block}}
    config = build(tree)
    config.store.mkdir(parents=True, exist_ok=True)
    bars = Bars(Console(file=io.StringIO()), None)
    heard: list[float] = []
    marks: list[tuple[float, float]] = []  # of the whole process, when a block was answered

    def on_progress(p: Any) -> None:
        bars.update(f"logits of {p.teacher}", p.done, p.total, f"{p.per_replica:.0f} rows/s", news=False)
        heard.append(time.thread_time())
        marks.append((time.perf_counter(), time.process_time()))

    one = pupil(encoded, blocks * rows_a_block, replicas, teacher)
    pool = WatchedPool([one], LogitStore.at(folder / "pool-store"), config, 0.0, on_progress)
    since = time.perf_counter()
    try:
        pool.start()
        pool.ready()
        while pool.progress[0].replicas < replicas:
            pool.check()
            time.sleep(0.05)
        started = time.perf_counter() - since
        pool.wait()
    finally:
        pool.close()
    part = slice(len(heard) // 4, -len(heard) // 10 or None)  # without the start and the end
    thread, both = heard[part], marks[part]
    count, wall = len(thread) - 1, both[-1][0] - both[0][0]
    return {
        "thread_ms_per_block": 1000 * (thread[-1] - thread[0]) / count,
        "process_ms_per_block": 1000 * (both[-1][1] - both[0][1]) / count,
        "blocks_per_s": count / wall,
        "loaded_after_s": started,
    }


def part_pool(folder: Path, quick: bool) -> dict[str, Any]:
    found = {}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        for replicas in (2, 4) if quick else (4, 12, 36):
            got = filling(folder, replicas, 60 if quick else 400, 20.0)
            found[str(replicas)] = got
            say(f"{replicas} replicas: {_listed(got)}")
    finally:
        ray.shutdown()
    return found


# Ray itself.


@ray.remote(num_cpus=0)
class Light:
    def here(self) -> int:
        return os.getpid()


def children(of: int) -> dict[int, str]:
    """This process's descendants' command lines, by process."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    found, last = {of}, 0
    while len(found) != last:
        last = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return {process: names[process] for process in found if process in names}


def part_gcs(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        gcs = next(p for p, name in children(os.getpid()).items() if "gcs_server" in name.split(" ")[0])
        actors: list[Any] = []
        for count in (4, 8) if quick else (8, 24, 72):
            before, since = cpu_seconds(gcs), time.perf_counter()
            new = [Light.options(name=f"light-{i}").remote() for i in range(len(actors), count)]  # type: ignore
            ray.get([actor.here.remote() for actor in new])
            took, spent = time.perf_counter() - since, cpu_seconds(gcs) - before
            actors += new
            before, since = cpu_seconds(gcs), time.perf_counter()
            time.sleep(1 if quick else 5)
            idle = (cpu_seconds(gcs) - before) / (time.perf_counter() - since)
            named = seconds(lambda: ray.get_actor("light-0"), 100, time.perf_counter)
            got = {
                "actors_per_s": len(new) / took,
                "gcs_cpu_ms_per_actor": 1000 * spent / len(new),
                "gcs_idle_cpu": idle,
                "get_actor_ms": 1000 * named,
            }
            found[str(count)] = got
            say(f"{count} actors: {_listed(got)}")
        directory = directory_here()
        ray.get(directory.put.remote("a", actors[:10]))
        process = next(p for p, name in children(os.getpid()).items() if name.startswith("ray::Directory"))
        calls = 200 if quick else 2000
        before, since = cpu_seconds(process), time.perf_counter()
        ray.get([directory.get.remote("a") for _ in range(calls)])
        took = time.perf_counter() - since
        found["directory"] = {"cpu_ms": 1000 * (cpu_seconds(process) - before) / calls, "calls_per_s": calls / took}
        say(f"the directory of live teachers, 10 replicas: {_listed(found['directory'])}")
    finally:
        ray.shutdown()
    return found


# MLflow.


@contextmanager
def postgres() -> Iterator[str]:
    """SQLAlchemy's URI of a database in a server of its own, on a socket only."""
    place = Path(tempfile.mkdtemp())
    ours = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses to run as root
    if ours:
        shutil.chown(place, "postgres")
    tools, data = POSTGRES[-1].parent, str(place / "data")
    init = [*ours, str(tools / "initdb"), "-D", data, "-A", "trust", "-U", "postgres"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd=place)
    command = [*ours, str(POSTGRES[-1]), "-D", data, "-k", str(place), "-c", "listen_addresses="]
    with (place / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=place)
    try:
        until(lambda: (place / ".s.PGSQL.5432").exists(), server)
        create = [*ours, str(tools / "createdb"), "-h", str(place), "-U", "postgres", "mlflow"]
        until(lambda: subprocess.run(create, cwd=place, capture_output=True).returncode == 0, server)
        yield f"postgresql+psycopg2://postgres@/mlflow?host={place}"
    finally:
        # Its own stop waits for clients that are gone; `runuser` does not hand signals on.
        subprocess.run([*ours, str(tools / "pg_ctl"), "-D", data, "-m", "fast", "stop"], cwd=place, capture_output=True)
        server.wait(30)
        shutil.rmtree(place)


def until(there: Callable[[], bool], server: "subprocess.Popen[bytes]") -> None:
    limit = time.monotonic() + 90
    while not there():
        if server.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"{server.args!r} does not come up")
        time.sleep(0.1)


@contextmanager
def mlflow_server(backend: str, folder: Path) -> Iterator[str]:
    """Its address. One worker: more would only share these two cores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend, "--artifacts-destination", str(folder)]
    folder.mkdir()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def there() -> bool:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except OSError:
            return False
        return True

    try:
        until(there, server)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def trials(uri: str, folder: Path, count: int) -> dict[str, float]:
    """What a trial costs the driver: a run is made, five evaluations of 400 logged steps in all, and it ends."""
    given = load(ROOT / "jobs" / "digits_sweep.yaml", [f"output={folder / 'runs'}"])
    prepared = prepare(given)
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "config.yaml").write_text("")
    bars = Bars(Console(file=io.StringIO()), None)
    first = student_jobs(given, prepared, FINETUNE, ())[0]
    values = dict.fromkeys(["loss", "label", "learning_rate", "gradient_norm", "alpha", "waited_share"], 0.5)
    times: dict[str, list[float]] = {"make": [], "points": [], "end": []}
    points = 0
    with Recorder(Tracking(uri, "scale"), given, prepared, "sweep") as recorder:
        for i in range(count):
            job = dataclasses.replace(first, seed=1000 + i, name=f"kd {i}", keep=False)
            job.folder.mkdir(parents=True)
            metrics = {"validation": {"accuracy": 0.5, "nll": 0.5, "ece": 0.1}}
            result = {"generations": [metrics], "best": 0, "seconds": 1.0}
            (job.folder / "result.json").write_text(json.dumps(result))
            with gzip.open(job.folder / "predictions-validation.jsonl.gz", "wt") as file:
                file.writelines(json.dumps({"id": k, "prediction": 1, "score": 1.0}) + "\n" for k in range(200))
            marks = [time.perf_counter()]
            recorder.expect([job], "trial", job.name, "kd")
            marks.append(time.perf_counter())
            for k in range(1, 6):
                history = [(80 * (k - 1) + step, values) for step in range(1, 81)]
                told = {"event": "evaluation", "generation": 1, "step": 80 * k, "steps": 400, "history": history}
                recorder.on_event(job, told | {"metrics": metrics["validation"]}, bars)
                points += len(history) * len(values) + 3
            run = recorder.runs[job.name]
            run._wake.set()  # in a sweep the points come over time: they are not part of the end
            while run._pending:
                time.sleep(0.001)
            marks.append(time.perf_counter())
            recorder.end_trial(job, "finished", 0.0)
            marks.append(time.perf_counter())
            for name, took in zip(times, np.diff(marks), strict=True):
                times[name].append(float(took))
    median = {f"{name}_ms": 1000 * float(np.median(took)) for name, took in times.items()}
    return median | {"points_per_s": points / count / (median["points_ms"] / 1000)}


def many_runs(uri: str, folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """A sweep's report when it has so many trials, and what one more of them costs then."""
    from made_up_sweep import STEPS, Sweep  # type: ignore[import-not-found]

    sweep, found, made = Sweep(uri), {}, 0
    sweep.teachers()
    sweep.finals()
    rng, console = np.random.default_rng(0), Console(file=io.StringIO())
    for count in counts:
        took = []
        while made < count:
            setting = dict(
                zip(("alpha", "temperature", "W"), rng.uniform((0.1, 1.5, 0.0), (0.9, 5.0, 1.0)), strict=True)
            )
            since = time.perf_counter()
            run = sweep._trial("weighted", {k: float(v) for k, v in setting.items()}, made, "finished")
            sweep._curve(run, 0.1, STEPS)
            run.finish()
            took.append(time.perf_counter() - since)
            made += 1
        client = open_store(uri)
        parent = find_run(client, uri, sweep.id)
        before, since = forget_peak(), time.perf_counter()
        read(client, uri, parent)
        found[str(count)] = {
            "run_ms": 1000 * float(np.median(took[-count // 10 :])),
            "read_s": time.perf_counter() - since,
            "read_peak_mb": (memory("VmHWM") - before) / 1e6,
            "report_s": seconds(lambda: report(uri, [sweep.id], folder / "report", console), 1, time.perf_counter),
        }
    return found


def part_mlflow(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    count = 3 if quick else 10
    with contextlib.ExitStack() as servers:
        stores = {"sqlite": f"sqlite:///{folder}/direct.db"}
        Tracking(f"sqlite:///{folder}/served.db", "template")  # its tables
        if not quick:
            stores["server_sqlite"] = servers.enter_context(
                mlflow_server(f"sqlite:///{folder}/served.db", folder / "server-sqlite")
            )
            if (reason := no_postgres()) is None:
                database = servers.enter_context(postgres())
                stores["server_postgres"] = servers.enter_context(mlflow_server(database, folder / "server-postgres"))
            else:
                say(f"PostgreSQL is left out: {reason}")
        for name, uri in stores.items():
            found[name] = apart(trials, uri, folder / name, count)
            say(f"a trial on {name}: {_listed(found[name])}")
    counts = (20, 40) if quick else (100, 1000)
    found["runs"] = apart(many_runs, f"sqlite:///{folder}/many.db", folder, counts)
    for n, got in found["runs"].items():
        say(f"{n} trials on sqlite: {_listed(got)}")
    return found


def no_postgres() -> str | None:
    if not POSTGRES:
        return "there is no server in /usr/lib/postgresql"
    try:
        import psycopg2  # type: ignore[import-untyped] # noqa: F401
    except ImportError:
        return "psycopg2 is not on the path"
    return None


# The model.

TEACHERS, REPLICAS, TRIALS, AT_ONCE, ROWS = 10, 100, 1000, 64, 10 * MILLION
REPLICA_ROWS_S, TRIAL_SECONDS = 500.0, 600.0  # what a replica computes; how long a trial takes
MAPS = 65_530  # vm.max_map_count, Linux's default


def at(costs: Mapping[str, Any], name: str, size: float) -> float:
    """A cost at a larger size: on the line through the smallest and the largest that were measured, if that rises."""
    sizes = sorted(int(key) for key in costs if key.isdigit())
    low, high = (costs[str(sizes[i])][name] for i in (0, -1))
    return max(high, low + (high - low) * (size - sizes[0]) / (sizes[-1] - sizes[0]))


def model(found: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
    """(part, its cost at that scale, share of what there is, at which size it is all of it), the fullest first."""
    rows_m, made = ROWS / MILLION, []

    def add(part: str, cost: str, used: float, of: float = 1.0, unit: float = ROWS, name: str = "rows") -> None:
        share = used / of
        made.append((part, cost, share, f"{unit / share:,.3g} {name}" if share else ""))

    if "pool" in found:
        ms, rate = at(found["pool"], "thread_ms_per_block", REPLICAS), REPLICAS * REPLICA_ROWS_S / BLOCK_ROWS
        cost = f"{ms:.1f} ms a block, {rate:.0f} blocks/s"
        add("driver's thread of the fill, one core", cost, ms * rate / 1000, 1, REPLICAS, "replicas")
    if "index" in found and "store" in found:
        per_block = 1000 * BLOCK_ROWS / REPLICA_ROWS_S
        fetch, look = at(found["index"], "fetch_ms", ROWS), at(found["store"], "check_ms", ROWS)
        cost = f"{fetch:.0f} ms to have the rows, {look:.0f} ms to look who has stored them, {per_block:.0f} to compute"
        add("a replica's time that is not computing", cost, fetch + look, per_block)
    if "index" in found:
        kept, peak = (found["index"][max(found["index"], key=int)][f"plan_{name}_mb"] for name in ("kept", "peak"))
        gigabytes = (kept * TEACHERS + peak) * rows_m / 1000
        add("driver's memory of blocks to compute, 16 GB", f"{gigabytes:.1f} GB", gigabytes, 16)
    if "rows" in found:
        for kind, core in (("text-classification", "encode_s"), ("question-answering", "")):
            last = found["rows"][max((k for k in found["rows"] if k.startswith(kind)), key=len)]
            gigabytes = last["load_peak_mb"] * rows_m / 1000
            cost = f"{gigabytes:.1f} GB, {last['load_s'] * rows_m:.0f} s to read"
            cost += f", {last[core] * rows_m / 60:.0f} core-minutes to encode" if core else ""
            add(f"driver's memory while {kind} is read, 16 GB", cost, gigabytes, 16)
    if "store" in found:
        store, size = found["store"], max((k for k in found["store"] if k.isdigit()), key=int)
        one, three = store[f"{size}_1"], store[f"{size}_3"]
        kept = (one["kept_mb"] + (three["kept_mb"] - one["kept_mb"]) / 2 * (TEACHERS - 1)) * rows_m / 1000
        took = (one["open_s"] + (three["open_s"] - one["open_s"]) / 2 * (TEACHERS - 1)) * ROWS / int(size)
        add("a student's memory of its reader, 4 GB a process", f"{kept:.1f} GB", kept, 4)
        add("a student's opening of its reader, of ten minutes", f"{took:.0f} s a trial", took, TRIAL_SECONDS)
        blocks = ROWS * TEACHERS / BLOCK_ROWS
        add("maps of a student, blocks of 1,024 rows", f"{blocks:,.0f} of {MAPS:,}", blocks, MAPS)
        blocks = min(blocks, getattr(pool_module, "MOST_BLOCKS", blocks))
        add("maps of a student, blocks as they are", f"{blocks:,.0f} of {MAPS:,}", blocks, MAPS)
    if "gcs" in found:
        ms = max(found["gcs"][key]["gcs_cpu_ms_per_actor"] for key in found["gcs"] if key.isdigit())
        total = (REPLICAS + AT_ONCE) * ms / 1000
        add("GCS, actors that start within a minute", f"{ms:.0f} ms an actor", total, 60, REPLICAS, "replicas")
        asked = AT_ONCE * TEACHERS / 2
        cost = f"{found['gcs']['directory']['cpu_ms']:.1f} ms a call, {asked:.0f} calls/s"
        used = asked * found["gcs"]["directory"]["cpu_ms"] / 1000
        add("directory of live teachers, one core", cost, used, 1, AT_ONCE, "trials at once")
    for name, got in found.get("mlflow", {}).items():
        if "make_ms" in got:
            each, rate = (got["make_ms"] + got["end_ms"]) / 1000, AT_ONCE / TRIAL_SECONDS
            cost = f"{each:.2f} s a trial of the driver's, {got['points_per_s']:.0f} points/s"
            add(f"MLflow, {name}: driver's waiting", cost, each * rate, 1, AT_ONCE, "trials at once")
            add(f"MLflow, {name}: points", "2,415 a trial", rate * 2415, got["points_per_s"], AT_ONCE, "trials at once")
    return sorted(made, key=lambda row: -row[2])


PARTS = {
    "rows": part_rows,
    "index": part_index,
    "store": part_store,
    "pool": part_pool,
    "gcs": part_gcs,
    "mlflow": part_mlflow,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, help="some parts")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean nothing")
    given = parser.parse_args()
    versions = {name: __import__(name).__version__ for name in ("ray", "datasets", "numpy", "pyarrow", "torch")}
    versions["mlflow"] = __import__("importlib.metadata").metadata.version("mlflow")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}", flush=True)
    found: dict[str, Any] = {}
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in given.only or PARTS:
        since = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HF_DATASETS_CACHE"] = f"{folder}/hf"
            print(f"{name} (load {os.getloadavg()[0]:.1f})", flush=True)
            found[name] = PARTS[name](Path(folder), given.quick)
        print(f"  {time.perf_counter() - since:.0f} s", flush=True)
    rows = model(found) if not given.quick else []
    if rows:
        print(f"{TEACHERS} teachers of {ROWS:,} rows, {REPLICAS} replicas of {REPLICA_ROWS_S:.0f} rows/s;")
        print(f"{TRIALS:,} trials, {AT_ONCE} at once, {TRIAL_SECONDS:.0f} s each: part, cost, share used, used up at")
    for part, cost, share, limit in rows:
        say(f"{part:52} | {cost:78} | {share:7.1%} | {limit}")
    found["model"] = rows
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "versions": versions} | found))


if __name__ == "__main__":
    main()
