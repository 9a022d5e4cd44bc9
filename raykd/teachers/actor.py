"""The Ray actor that hosts one replica of a teacher. Thin: what it does with a model is in `serving`."""

import os
import threading
import time
from collections.abc import Collection

import numpy as np
import ray
import torch
from ray.util.metrics import Counter, Gauge

from raykd.common.environment import set_environment
from raykd.logits import LogitStore, TeacherLogits
from raykd.teachers.batching import Batcher
from raykd.teachers.requests import BlockAnswer, BlockRequest, RowsAnswer, RowsRequest, unpack
from raykd.teachers.serving import ServedTeacher

MAX_CALLS = 256  # calls at once: they wait in `Batcher`, not in Ray, so that they can be answered together


@ray.remote(max_concurrency=MAX_CALLS, concurrency_groups={"blocks": 1})
class TeacherActor:
    def __init__(
        self, served: ServedTeacher, store: LogitStore, disjoint: Collection[str], num_cpus: float, num_gpus: float
    ) -> None:
        """disjoint: names of blocks that share no row with any that this is asked for but itself.

        Nothing that can fail: an error here would only be told as the actor's death.
        """
        set_environment()
        self.served, self.store, self.disjoint = served, store, disjoint
        self.threads, self.num_gpus = max(1, int(num_cpus)), num_gpus
        self.one_at_a_time = threading.Lock()  # the model, and the store, which is not for several threads
        tags = {"tag_keys": ("teacher",)}
        self.rows = Counter("raykd_teacher_rows", "rows that a teacher has answered", **tags)
        self.waiting = Gauge("raykd_teacher_requests", "live requests that wait at a teacher", **tags)
        for metric in (self.rows, self.waiting):
            metric.set_default_tags({"teacher": served.name})

    def load(self) -> int:
        """Load the model; returns the process id. Errors are told as what they are."""
        torch.set_num_threads(self.threads)
        self.model = self.served.load(self.num_gpus)
        self.logits = TeacherLogits(self.store, self.served.key, self.disjoint)
        self.batcher = Batcher(self._forward, self.served.batch_tokens, self.waiting.set)
        return os.getpid()

    def live(self) -> None:
        """Never returns: who waits for it hears at once when this process dies."""
        threading.Event().wait()

    @ray.method(concurrency_group="blocks")
    def fill(self, request: BlockRequest) -> BlockAnswer:
        """Compute and store a block, without the rows that another job has stored meanwhile.

        One thread alone, so that blocks are computed in the order in which they are asked for.
        """
        with self.one_at_a_time:
            started, halved = time.monotonic(), self.model.halved
            torch.set_num_threads(self.threads)  # OpenMP's setting is each thread's own
            missing = self.logits.missing(request.row_ids, request.input_hashes)
            if len(missing):
                rows = self.model.logits(request.folders, request.positions[missing], request.folds[missing])
                self.logits.add(request.row_ids[missing], request.input_hashes[missing], rows)
                self.rows.inc(len(missing))
            seconds = time.monotonic() - started
            return BlockAnswer(len(request.positions), len(missing), seconds, self.model.halved - halved)

    def answer(self, request: RowsRequest) -> RowsAnswer:
        """Logits of rows that are handed over themselves. Requests that wait at the same time go together."""
        rows, seconds = self.batcher(unpack(request), request.folds)
        self.rows.inc(len(rows))
        return RowsAnswer(np.concatenate([r.ravel() for r in rows]), np.array([r.shape for r in rows]), seconds)

    def _forward(self, columns: dict[str, list], folds: np.ndarray) -> list[np.ndarray]:
        with self.one_at_a_time:
            torch.set_num_threads(self.threads)
            return self.model.answer(columns, folds)
