"""Each step's rows as tensors, with the teachers' logits of the same rows.

Inputs can change every epoch (augmentation). Logits are either stored, and waited for while the teachers are still
computing them, or live, and requested some steps ahead.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch

from raykd.common.ranks import DistContext
from raykd.common.shared_files import seen
from raykd.distillation import check_labels
from raykd.logits import StoredLogits
from raykd.logits.local import LocalFiles
from raykd.models.inputs import open_inputs
from raykd.models.opened import open_model
from raykd.plan.job import Job, TeacherRef
from raykd.tasks import Batch, Task, make_task
from raykd.teachers.live import Interrupted, Interruption, LiveLogits, TeacherClient
from raykd.teachers.requests import pack
from raykd.training.access import TeacherAccess
from raykd.training.agreement import still_waiting
from raykd.training.rows import TrainRows

_POLL_SECONDS = 0.05  # between two checks for a block that is being computed
_BEAT_SECONDS = 10.0  # between two messages of a worker that waits for logits to the other workers


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of one worker, on the host.

    positions: (B,) of its rows in the training rows.
    logits: (M, B, H, C) fp16, the teachers'; of a language model (M, B, H, F), what is kept of them; None where nothing
        is distilled.
    """

    positions: np.ndarray
    batch: Batch
    logits: torch.Tensor | None


@dataclass(frozen=True)
class GlobalBatch:
    """One optimizer step.

    number: of the step, from 0.
    positions: of the rows of all workers in the training rows.
    parts: this worker's, one for each step of gradient accumulation; none if it was interrupted or has failed.
    interrupted: why it has no parts: "stop" if the training was asked to stop, "missing" if it needs logits that nobody
        is computing; None if it has some, or has failed.
    failure: an error, perhaps of this worker alone.
    """

    number: int
    positions: np.ndarray
    parts: list[MicroBatch] = field(default_factory=list)
    interrupted: Interruption | None = None
    failure: Exception | None = None


@dataclass(frozen=True)
class _Upcoming:
    """A micro-batch that has its inputs but not yet its logits.

    pending: the live requests; None where logits are stored or nothing is distilled.
    """

    positions: np.ndarray
    columns: dict[str, list]
    distils: bool
    pending: Any = None


class StepLoader:
    """Iterates over a generation's steps.

    waited: seconds spent waiting for logits so far, by teacher.
    """

    def __init__(
        self,
        job: Job,
        rows: datasets.Dataset,
        task: Task,
        processor: Any,
        seed: int,
        stored: StoredLogits | None,
        context: DistContext,
        stop: Callable[[], bool],
        access: TeacherAccess,
    ) -> None:
        self.job, self.task, self.processor, self.context = job, task, processor, context
        self.stop, self.access, self.stored = stop, access, stored
        self.inputs = TrainRows(job, rows, task, seed)
        self.waited: dict[str, float] = {}
        self._last_message = time.monotonic()  # when the current step began, or this worker last said that it waits
        self.live: LiveLogits | None = None
        if job.live and job.teachers and access.directory is not None:
            settings = (access.directory, access.timeout_s, self._should_stop, context.rank)
            clients = [TeacherClient(t.name, t.key.fingerprint, *settings) for t in job.teachers]
            self.live = LiveLogits(clients, job.keep.form == "hidden")
            self._teacher_rows = [open_inputs(t.rows, task) for t in job.teachers]
            self._encoders = {
                _encoded_by(t): open_model(
                    t.served.models[0], make_task(t.served.task, job.label_names), f"teachers.{t.name}.model"
                )
                for t in job.teachers
                if t.served is not None
            }

    def steps(
        self,
        positions: np.ndarray,
        order: Iterator[np.ndarray],
        start: int,
        steps: int,
        distils: Callable[[int], bool],
    ) -> Iterator[GlobalBatch]:
        """The global batches of steps `start` to `steps - 1`.

        An interruption or a failure is that of the first step not trained yet, even if a later step's request met it.
        So every worker gets the same number of steps, and a checkpoint says what was trained.

        positions: (N,) the rows that are trained on.
        order: of all steps from 0, each one's indices into `positions`.
        distils: whether a step, by its number, needs the teachers' logits.
        """
        ahead: deque[tuple[int, np.ndarray, list[_Upcoming]]] = deque()
        for number, chosen in enumerate(islice(order, steps)):
            if number < start:
                continue  # before the resume: only the order is replayed
            every = positions[chosen]
            mine = np.array_split(every[self.context.rank :: self.context.world], self.job.training.accumulation)
            self._last_message = time.monotonic()
            try:
                upcoming = [self._prepare(number, part, distils(number)) for part in mine]
            except Exception as error:
                first, rows = ahead[0][:2] if ahead else (number, every)
                yield _without_parts(first, rows, error)
                return
            ahead.append((number, every, upcoming))
            if len(ahead) > (self.access.in_flight if self.live else 0):
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def _prepare(self, step: int, positions: np.ndarray, distils: bool) -> _Upcoming:
        """Encode some rows and, live, request their logits."""
        raw = self.inputs.augmented(step, positions) if self.job.augment else None
        columns = (
            self.inputs.encoded[positions]
            if raw is None
            else self.inputs.encode(raw, self.processor, positions, self.task)
        )
        if not (distils and self.live):
            return _Upcoming(positions, columns, distils)
        by_processor: dict[tuple[str, str], dict[str, list]] = {}  # teachers that share one get the same inputs
        requests = []
        for teacher, teacher_rows in zip(self.job.teachers, self._teacher_rows, strict=True):
            name = _encoded_by(teacher)
            if raw is None:
                theirs = teacher_rows[positions]
            elif name not in by_processor:
                model = self._encoders[name]
                theirs = self.inputs.encode(raw, model.processor, positions, model.task)
                by_processor[name] = theirs
            else:
                theirs = by_processor[name]
            assert teacher.folds is not None
            requests.append(pack(theirs, teacher.folds[positions]))
        return _Upcoming(positions, columns, distils, self.live.ask(requests))

    def _should_stop(self) -> bool:
        """Whether to stop waiting for logits. Raises Interrupted if another worker ends the training."""
        if self.context.world > 1 and time.monotonic() - self._last_message > _BEAT_SECONDS:
            others = still_waiting(self.context)
            self._last_message = time.monotonic()
            if others.missing:
                raise Interrupted("missing")
            if others.stopped or others.failed:
                raise Interrupted("stop")
        return self.stop()

    def _finish(self, number: int, every: np.ndarray, upcoming: list[_Upcoming]) -> GlobalBatch:
        self._last_message = time.monotonic()
        try:
            if self.stop():
                raise Interrupted("stop")
            parts = []
            for part in upcoming:
                batch = self.task.collate(part.columns, self.processor)
                classes = int(self.task.shapes(part.columns)[:, 1].max())
                if not self.task.predicts_values:  # here, because on a GPU the loss would synchronize
                    check_labels(batch.labels, classes, batch.mask)
                logits = None
                if part.distils:
                    values = self._live(part.pending) if self.live else self._stored(part.positions)
                    logits = torch.from_numpy(values)
                parts.append(MicroBatch(part.positions, batch, logits))
        except Exception as error:  # raised by the trainer, once every worker knows of it
            return _without_parts(number, every, error)
        return GlobalBatch(number, every, parts)

    def _live(self, pending: Any) -> np.ndarray:
        assert self.live is not None
        logits = self.live.answer(pending)
        self.waited = {client.name: client.waited for client in self.live.clients}
        return logits

    def rows(self) -> dict[str, int]:
        """Rows that live teachers have answered so far, by teacher."""
        return {client.name: client.rows for client in self.live.clients} if self.live is not None else {}

    def _precompute_running(self) -> bool:
        return self.access.precompute_running is not None and self.access.precompute_running()

    def _stored(self, positions: np.ndarray) -> np.ndarray:
        """Wait for rows that are being computed. Raises Interrupted("missing") if nobody computes them."""
        assert self.stored is not None
        if not (lacking := self.stored.lacking(positions)):
            return self.stored[positions]
        checked = time.monotonic()
        while lacking:
            running = self._precompute_running()  # before the refresh, so that no block is missed
            self.stored.refresh(always=not running)
            now = time.monotonic()
            for name in lacking:
                self.waited[name] = self.waited.get(name, 0.0) + now - checked
            checked = now
            lacking = self.stored.lacking(positions)
            if not lacking:
                break
            if self._should_stop():
                raise Interrupted("stop")
            if not running and not self._hidden(positions):
                raise Interrupted("missing")
            time.sleep(_POLL_SECONDS)
        return self.stored[positions]

    def _hidden(self, positions: np.ndarray) -> bool:
        """Whether another node has written the rows or is computing them, which this node did not see yet."""
        files = self.job.logits.files()
        if not isinstance(files, LocalFiles):  # an object store hides nothing
            return False

        stored = self.stored
        assert stored is not None

        def visible() -> bool:
            stored.refresh(always=True)
            return self._precompute_running() or self._should_stop() or not stored.lacking(positions)

        return seen(files.path, visible)


def _without_parts(number: int, every: np.ndarray, error: Exception) -> GlobalBatch:
    if isinstance(error, Interrupted):
        return GlobalBatch(number, every, interrupted=error.why)
    return GlobalBatch(number, every, failure=error)


def _encoded_by(teacher: TeacherRef) -> tuple[str, str]:
    """What decides the inputs that a teacher gets for a row: its tokenizer or image processor, and their length."""
    return teacher.key.processor, teacher.key.preprocessing
