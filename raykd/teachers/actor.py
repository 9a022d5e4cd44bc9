"""The Ray actor that hosts one replica of a teacher. The model's side, without Ray, is in `serving`."""

import gc
import os
import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import ray
import torch
from ray.util.metrics import Counter, Gauge

from raykd.common.device_errors import cuda_error, gpu_failed
from raykd.common.environment import begin_task
from raykd.logits import LogitStore, TeacherLogits
from raykd.teachers.batching import Batcher
from raykd.teachers.requests import BlockAnswer, BlockRequest, RowsAnswer, RowsRequest, unpack
from raykd.teachers.serving import ServedTeacher

_LISTING_SECONDS = 1.0  # how old a listing of the store may be: what other jobs have stored since is computed again
MAX_CALLS = 256  # concurrent calls: they wait in `Batcher` rather than in Ray, so that they can be batched


class _Measured(NamedTuple):
    """A snapshot of a model's counters; see `TeacherModel`."""

    halved: int
    notes: tuple[str, ...]
    extra_seconds: float


@ray.remote(max_concurrency=MAX_CALLS, concurrency_groups={"blocks": 2})
class TeacherActor:
    def __init__(self, store: LogitStore, num_cpus: float, num_gpus: float) -> None:
        """Must not raise: Ray reports an exception in `__init__` only as a dead actor."""
        begin_task()
        self.store, self.threads, self.num_gpus = store, max(1, int(num_cpus)), num_gpus
        self.computing, self.storing = threading.Lock(), threading.Lock()  # the model and the store are not thread-safe
        self.turns, self.turn = threading.Condition(), 0  # of the blocks: whose it is to be computed
        self.computed = 0.0  # when the last block's logits had arrived
        self.failure: Exception | None = None
        self.failed = threading.Event()
        tags = {"tag_keys": ("teacher",)}
        self.rows = Counter("raykd_teacher_rows", "rows that a teacher has computed", **tags)
        self.waiting = Gauge("raykd_teacher_requests", "live requests waiting at a teacher", **tags)
        self.batcher = Batcher(self._forward, 0, self.waiting.set)

    def load(self, served: ServedTeacher, disjoint: Collection[str]) -> int:
        """Load a teacher in place of the previous one, if any, and return the process id.

        disjoint: names of blocks that share no rows with any block of this teacher that this actor holds, except
            itself.

        Unlike in `__init__`, errors reach the caller.
        """
        torch.set_num_threads(self.threads)
        before = vars(self).pop("model", None)
        if before and before.compiling.used:
            torch.compiler.reset()  # torch compiles a function only a limited number of times in one process
        del before
        gc.collect()  # models are in reference cycles, and there may be no memory for two of them
        torch.cuda.empty_cache()  # it can be in pieces that are too small for the next model
        self.model, self.turn = served.load(self.num_gpus), 0
        self.model.keep_head(self.store)
        self.logits = TeacherLogits(self.store, served.key, disjoint)
        self.batcher.budget, self.batcher.tokens_per_length = self.model.batch_tokens, self.model.task.tokens_per_length
        for metric in (self.rows, self.waiting):
            metric.set_default_tags({"teacher": served.name})
        return os.getpid()

    def live(self) -> None:
        """Waits until CUDA has failed at a student's request, and raises that error.

        Waiting on this call is how the driver detects that the process died.
        """
        self.failed.wait()
        assert self.failure is not None
        raise self.failure

    @ray.method(concurrency_group="blocks")
    def precompute(self, request: BlockRequest, turn: int, left: int) -> BlockAnswer:
        """Compute and store a block, without the rows that another job has stored since.

        There are two threads for these calls: one waits for its block's logits, hashes and writes them, while the other
        reads the next block's rows and sends them to the device.

        turn: how many of these calls were made before; blocks are computed in this order.
        left: rows that this replica has still to compute, about, with this block.
        """
        holds_lock = False

        def end_turn() -> None:
            nonlocal holds_lock
            if holds_lock:
                holds_lock = False
                self.computing.release()
            with self.turns:
                self.turn = max(self.turn, turn + 1)
                self.turns.notify_all()

        try:
            with self.storing:
                missing = self.logits.missing(request.row_ids, request.input_hashes, max_age=_LISTING_SECONDS)
            with self.turns:
                self.turns.wait_for(lambda: self.turn >= turn)  # above it if a later call has failed at once
            if not len(missing):
                return BlockAnswer(len(request.positions), 0, 0.0, 0)
            self.computing.acquire()
            holds_lock = True
            started, before = time.monotonic(), self._measured()
            after = before

            def sent() -> None:
                nonlocal after
                if holds_lock:  # what the model measures from here on is the next block's
                    after = self._measured()
                    end_turn()

            torch.set_num_threads(self.threads)  # OpenMP's setting is per thread
            asked = request.folders, request.positions[missing], request.folds[missing], left
            rows = self.model.logits(*asked, sent)
            sent()
        finally:
            end_turn()
        arrived = time.monotonic()
        computing = arrived - max(started, self.computed)  # the device computes one block after another
        computing -= after.extra_seconds - before.extra_seconds
        self.computed = max(arrived, self.computed)
        with self.storing:
            started = time.monotonic()
            self.logits.add(request.row_ids[missing], request.input_hashes[missing], rows)
            seconds = max(computing, time.monotonic() - started)
        self.rows.inc(len(missing))
        notes = tuple(note for note in after.notes if note not in before.notes)
        return BlockAnswer(len(request.positions), len(missing), seconds, after.halved - before.halved, notes)

    def _measured(self) -> _Measured:
        return _Measured(self.model.halved, self.model.notes, self.model.extra_seconds)

    def answer(self, request: RowsRequest) -> RowsAnswer:
        """Logits of rows that are sent by value. Requests that wait at the same time are computed in one batch."""
        try:
            rows, seconds = self.batcher(unpack(request), request.folds)
        except Exception as error:
            if cuda_error(error):  # of every later request, too
                self.failure = error
                self.failed.set()
            if not gpu_failed(error):
                raise
            threading.Event().wait()  # until the driver kills this process, and another replica gets the request
        self.rows.inc(len(rows))
        return RowsAnswer(np.concatenate([r.ravel() for r in rows]), np.array([r.shape for r in rows]), seconds)

    def _forward(self, columns: dict[str, list], folds: np.ndarray) -> list[np.ndarray]:
        with self.computing:
            torch.set_num_threads(self.threads)
            return self.model.answer(columns, folds)
