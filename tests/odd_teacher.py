"""A made teacher with the store that it fills undisturbed, and teachers that compute the same in an odd way."""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
import transformers
from tiny import electra, reviews_job, save_tokenizer

from raykd.config.load import build, override
from raykd.config.schema import Config
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher
from raykd.teachers.blocks import TeacherWork, missing_blocks
from raykd.teachers.pool import TeacherPool
from raykd.teachers.replica import Progress
from raykd.teachers.serving import ServedTeacher, TeacherModel

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
LIMIT = 300  # seconds; nothing here may take that long, also on a busy machine


def broken_gpu() -> Exception:
    """As torch raises it."""
    return torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\n"
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
        "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
    )


@dataclasses.dataclass(frozen=True)
class OddTeacher(ServedTeacher):
    """Computes what a teacher computes, when it gets to it. Who is at work leaves a file PID.pid, which says where.

    how: "wait" does so once the file `go` is there, "die" dies at work, "hungry" has memory for 4 rows at once,
    "second" waits before the second block until a file matches `awaited`, "broken" finds that its GPU has failed at its
    first block and at its first request, "overlap" returns a block only when the next one has begun, of as many blocks
    as `awaited` says. row_seconds: what a row takes at least.
    """

    how: str = "wait"
    folder: Path = Path()
    row_seconds: float = 0.0
    awaited: str = ""

    def load(self, num_gpus: float) -> TeacherModel:
        return OddModel(self, num_gpus)

    def pids(self) -> set[int]:
        return {int(path.stem) for path in self.folder.glob("*.pid")}

    def places(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.folder.glob("*.pid")]

    @property
    def go(self) -> Path:
        return self.folder / "go"


class OddModel(TeacherModel):
    served: OddTeacher

    def __init__(self, served: OddTeacher, num_gpus: float) -> None:
        super().__init__(served, num_gpus)
        self.blocks = 0
        if served.how == "hungry":
            self.models = [Hungry(model, 4) for model in self.models]

    def logits(
        self,
        folders: Any,
        positions: np.ndarray,
        folds: np.ndarray,
        left: int = 0,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Sequence[np.ndarray]:
        order = self.served.folder / "order"
        with order.open("a") as file:
            file.write(f"{positions[0]}\n")
        begun = len(order.read_text().split())
        with (self.served.folder / "left").open("a") as file:
            file.write(f"{left}\n")
        self.fail_once("block")
        self.begin(len(folds))
        found = super().logits(folders, positions, folds, left, on_sent)
        if self.served.how == "overlap" and begun < int(self.served.awaited):
            self.wait(lambda: len(order.read_text().split()) > begun)
        return found

    def answer(self, columns: Any, folds: np.ndarray) -> list[np.ndarray]:
        self.fail_once("request")
        self.begin(len(folds))
        return super().answer(columns, folds)

    def fail_once(self, at: str) -> None:
        marker = self.served.folder / f"broken-{at}"
        if self.served.how == "broken" and not marker.exists():
            marker.write_text(str(os.getpid()))
            raise broken_gpu()

    def begin(self, rows: int) -> None:
        context = ray.get_runtime_context()
        place = {"node": context.get_node_id(), "gpus": context.get_accelerator_ids().get("GPU", [])}
        part = self.served.folder / f"{os.getpid()}.part"
        part.write_text(json.dumps(place))
        part.replace(part.with_suffix(".pid"))  # who sees it sees all of it
        self.blocks += 1
        time.sleep(self.served.row_seconds * rows)
        if self.served.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.served.how == "wait":
            self.wait(self.served.go.exists)
        if self.served.how == "second" and self.blocks == 2:
            base, pattern = self.served.awaited.split("//")
            self.wait(lambda: any(Path(base).glob(pattern)))

    def wait(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < limit, "it was waited for in vain"
            time.sleep(0.01)


class Hungry(torch.nn.Module):
    """A model that has memory for a few rows only."""

    def __init__(self, model: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most = model, most

    def forward(self, **inputs: torch.Tensor) -> Any:
        if len(inputs["input_ids"]) > self.most:
            torch.empty(2**50)
        return self.model(**inputs)


def save_teacher(folder: Path, seed: int) -> Path:
    """A given checkpoint whose rows' logits differ."""
    torch.manual_seed(seed)
    sizes = {**electra(), "initializer_range": 0.5}
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    transformers.ElectraForSequenceClassification(transformers.ElectraConfig(**sizes, **labels)).save_pretrained(folder)
    return save_tokenizer(folder)


def make(folder: Path) -> SimpleNamespace:
    """A given teacher of the reviews job, and the store that it fills when nothing disturbs it (in this process)."""
    model = save_teacher(folder / "model", 0)
    tree = override(reviews_job(folder), {"logits.block_rows": 30, "ray.timeout_s": LIMIT})
    tree["teachers"] = [{"name": "a", "model": str(model)}]
    config = build(tree)
    prepared = prepare(config)
    served = served_teacher(config, prepared, config.teachers[0], [], "float32")
    splits = {n: (s, prepared.teachers["a"].splits[n]) for n, s in prepared.splits.items()}
    store = LogitStore.at(folder / "store")
    stored = TeacherLogits(store, served.key)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in an actor of one CPU
    teacher = TeacherModel(served)
    for block in missing_blocks(TeacherWork(config.teachers[0], served, splits), stored, 30):
        stored.add(block.row_ids, block.input_hashes, teacher.logits(block.folders, block.positions, block.folds))
    torch.set_num_threads(threads)
    return SimpleNamespace(tree=tree, model=model, served=served, splits=splits, store=store, teacher=teacher)


def config_of(made: SimpleNamespace, **changes: Any) -> Config:
    return build(override(made.tree, {key.replace("__", "."): value for key, value in changes.items()}))


def odd(served: ServedTeacher, folder: Path, how: str = "wait", **more: Any) -> OddTeacher:
    folder.mkdir()
    fields = {f.name: getattr(served, f.name) for f in dataclasses.fields(ServedTeacher)}
    return OddTeacher(**fields, how=how, folder=folder, **more)


def three(
    made: SimpleNamespace, folder: Path, *sizes: dict[str, float]
) -> tuple[TeacherPool, LogitStore, list[OddTeacher]]:
    """A pool of teachers a, b and c with these resources each: the same logits, but other teachers to the store."""
    config, store = config_of(made), LogitStore.at(folder / "store")
    served = [odd(dataclasses.replace(made.served, name=name, digests=(name,)), folder / name) for name in "abc"]
    works = [
        TeacherWork(config.teachers[0].model_copy(update={"name": one.name, **size}), one, made.splits)
        for one, size in zip(served, sizes, strict=True)
    ]
    return TeacherPool(works, store, config, 0, lambda progress: None), store, served


@contextmanager
def at_work(
    made: SimpleNamespace, config: Config, served: ServedTeacher, store: LogitStore, directory: Any = None
) -> Iterator[tuple[TeacherPool, list[Progress]]]:
    reports: list[Progress] = []
    gpus = ray.cluster_resources().get("GPU", 0.0)
    pool = TeacherPool(
        [TeacherWork(config.teachers[0], served, made.splits)], store, config, gpus, reports.append, directory
    )
    try:
        pool.start()
        yield pool, reports
    finally:
        pool.close()


def until(condition: Callable[[], Any], pool: TeacherPool | None = None) -> Any:
    """What the condition gives once it holds."""
    limit = time.monotonic() + LIMIT
    while not (found := condition()):
        if pool is not None:
            pool.check()
        assert time.monotonic() < limit, "it never came to that"
        time.sleep(0.02)
    return found


def files(store: LogitStore) -> dict[str, bytes]:
    """Its blocks."""
    return {path.name: path.read_bytes() for path in Path(store.storage).rglob("*.block")}
