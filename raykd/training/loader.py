"""Each step's rows as tensors, with the teachers' logits of the same rows.

Inputs may change every epoch (augmentation); logits are stored ones, waited for while the teachers are still
filling the store, or live ones, asked for some steps ahead.
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

from raykd.cluster.flags import Flag
from raykd.common.ranks import DistContext
from raykd.common.row_files import open_rows
from raykd.common.shared_files import seen
from raykd.distillation import check_labels
from raykd.logits import StoredLogits
from raykd.logits.local import LocalFiles
from raykd.models.opened import open_model
from raykd.models.prediction import fed_columns, open_fed
from raykd.plan.job import Job
from raykd.tasks import Batch, Task
from raykd.teachers.live import Interrupted, LiveLogits, TeacherClient
from raykd.teachers.requests import pack
from raykd.training.agreement import still_waiting

_POLL_SECONDS = 0.05  # between two looks for a block that is being computed
_BEAT_SECONDS = 10.0  # a worker that waits for logits tells the others so this often


@dataclass(frozen=True)
class TeacherAccess:
    """How the teachers serve this run; no part of a training's identity, for the numbers are the same.

    precompute_running: up while missing blocks are being computed.
    directory: of live teachers, or None.
    """

    precompute_running: Flag | None = None
    directory: Any = None
    in_flight: int = 4
    timeout_s: float = 600.0


@dataclass(frozen=True)
class MicroBatch:
    """One accumulation's share of a step, on the host. logits: (M, B, H, C) fp16, None where nothing is distilled."""

    positions: np.ndarray
    batch: Batch
    logits: torch.Tensor | None


@dataclass(frozen=True)
class GlobalBatch:
    """positions: the whole step's rows, every worker's.

    interrupted, failure: why there are no parts ("stop", "missing", or an error of this worker alone).
    """

    number: int
    positions: np.ndarray
    parts: list[MicroBatch] = field(default_factory=list)
    interrupted: str = ""
    failure: Exception | None = None


class TrainRows:
    """The training rows as a processor feeds them, changed anew every step if the job says so."""

    def __init__(self, job: Job, rows: datasets.Dataset, task: Task, seed: int) -> None:
        self.job, self.task, self.seed, self.encoded = job, task, seed, fed_columns(rows, task)
        if job.augment:
            self.labels = rows.select_columns("labels")
            self.row_subset = np.asarray(rows.select_columns("example")[:]["example"])
            raw = [open_rows(folder) for folder in job.raw_train]
            starts = np.cumsum([0] + [len(split) for split in raw])
            counts = [len(encoded.open()) for encoded in job.train]
            self.row_subset = self.row_subset + np.repeat(
                starts[:-1], counts
            )  # in all raw rows, one split after the other
            self.raw = datasets.concatenate_datasets(
                [
                    split.select_columns([n for n in split.column_names if n in task.columns + task.optional_columns])
                    for split in raw
                ]
            )

    def changed(self, step: int, positions: np.ndarray) -> dict[str, list]:
        """The raw rows, augmented. Each row's change depends on the seed, the step and the row alone."""
        rows = self.raw[self.row_subset[positions]]
        assert self.job.augment is not None
        columns: dict[str, list] = {name: [] for name in rows}
        for i, position in enumerate(positions):
            rng = np.random.default_rng([self.seed, step, int(position)])
            one = self.task.augment({name: [values[i]] for name, values in rows.items()}, rng, self.job.augment)
            for name in columns:
                columns[name] += one[name]
        return columns

    def encode(self, raw: dict[str, list], processor: Any, positions: np.ndarray) -> dict[str, list]:
        columns = self.task.encode(raw, processor, False)
        return columns | {"labels": self.labels[positions]["labels"]}


class StepLoader:
    """Iterates over a generation's steps, from `start` on.

    waited: seconds that were spent waiting for logits so far, by teacher.
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
        serving: TeacherAccess,
    ) -> None:
        self.job, self.task, self.processor, self.context = job, task, processor, context
        self.stop, self.serving, self.stored = stop, serving, stored
        self.inputs = TrainRows(job, rows, task, seed)
        self.waited: dict[str, float] = {}
        self._begun = time.monotonic()  # when the work on the current step began, or the others last heard of it
        self.live: LiveLogits | None = None
        if job.live and job.teachers and serving.directory is not None:
            names = (serving.directory, serving.timeout_s, self._gives_up, context.rank)
            self.live = LiveLogits([TeacherClient(t.name, t.key.fingerprint, *names) for t in job.teachers])
            self._teacher_rows = [open_fed(t.rows, task) for t in job.teachers]
            self._processors = {
                t.key.processor: open_model(t.served.models[0], task, f"teachers.{t.name}.model").processor
                for t in job.teachers
                if t.served is not None
            }

    def steps(
        self, used: np.ndarray, order: Iterator[np.ndarray], start: int, steps: int, distils: Callable[[int], bool]
    ) -> Iterator[GlobalBatch]:
        """used: (N,) the rows that are trained on; order: positions in it, a step's at a time.

        An interruption or a failure is of the first step that is not trained yet, also where a later one's request
        met it: every worker gets the same number of steps, and a checkpoint says what was trained.
        """
        ahead: deque[tuple[int, np.ndarray, list[Any]]] = deque()
        for number, chosen in enumerate(islice(order, steps)):
            if number < start:
                continue  # before the resume: only the order is replayed
            mine = np.array_split(used[chosen[self.context.rank :: self.context.world]], self.job.training.accumulation)
            self._begun = time.monotonic()
            try:
                asked = [self._ask(number, positions, distils(number)) for positions in mine]
            except Exception as error:
                first, rows = ahead[0][:2] if ahead else (number, used[chosen])
                yield _without_parts(first, rows, error)
                return
            ahead.append((number, used[chosen], asked))
            if len(ahead) > (self.serving.in_flight if self.live else 0):
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def _ask(self, step: int, positions: np.ndarray, distils: bool) -> Any:
        """Inputs of some rows and, live, the request for their logits, under way."""
        raw = self.inputs.changed(step, positions) if self.job.augment else None
        mine = self.inputs.encoded[positions] if raw is None else self.inputs.encode(raw, self.processor, positions)
        if not (distils and self.live):
            return positions, mine, None, distils
        packed = {}
        requests = []
        for teacher, teacher_rows in zip(self.job.teachers, self._teacher_rows, strict=True):
            name = teacher.key.processor
            if raw is None:
                theirs = teacher_rows[positions]
            elif name not in packed:
                packed[name] = theirs = self.inputs.encode(raw, self._processors[name], positions)
            else:
                theirs = packed[name]
            assert teacher.folds is not None
            requests.append(pack(theirs, teacher.folds[positions]))
        return positions, mine, self.live.ask(requests), distils

    def _gives_up(self) -> bool:
        """Whether to stop waiting for logits. Raises Interrupted if another worker ends the training."""
        if self.context.world > 1 and time.monotonic() - self._begun > _BEAT_SECONDS:
            others = still_waiting(self.context)
            self._begun = time.monotonic()
            if others.missing:
                raise Interrupted("missing")
            if others.stopped or others.failed:
                raise Interrupted("stop")
        return self.stop()

    def _finish(self, number: int, every: np.ndarray, asked: list[Any]) -> GlobalBatch:
        self._begun = time.monotonic()
        try:
            if self.stop():
                raise Interrupted("stop")
            parts = []
            for positions, columns, questions, distils in asked:
                batch = self.task.collate(columns, self.processor)
                classes = len(self.task.label_names) if batch.mask is None else batch.mask.shape[-1]
                check_labels(batch.labels, classes, batch.mask)  # on a GPU the loss would have to wait for it
                logits = None
                if distils:
                    found = self._live(questions) if self.live else self._stored(positions)
                    logits = torch.from_numpy(found)
                parts.append(MicroBatch(positions, batch, logits))
        except Exception as error:  # raised by the loop, once every worker knows of it
            return _without_parts(number, every, error)
        return GlobalBatch(number, every, parts)

    def _live(self, questions: Any) -> np.ndarray:
        assert self.live is not None
        found = self.live.answer(questions)
        self.waited = {client.name: client.waited for client in self.live.clients}
        return found

    def rows(self) -> dict[str, int]:
        """That live teachers have answered so far, by teacher."""
        return {client.name: client.rows for client in self.live.clients} if self.live is not None else {}

    def _precompute_running(self) -> bool:
        return self.serving.precompute_running is not None and self.serving.precompute_running()

    def _stored(self, positions: np.ndarray) -> np.ndarray:
        """Waits for rows that are being computed; Interrupted("missing") if nobody computes them."""
        assert self.stored is not None
        if not (lacking := self.stored.lacking(positions)):
            return self.stored[positions]
        looked = time.monotonic()
        while lacking:
            running = self._precompute_running()  # before the refresh, so that no block is missed
            self.stored.refresh(always=not running)
            now = time.monotonic()
            for name in lacking:
                self.waited[name] = self.waited.get(name, 0.0) + now - looked
            looked = now
            lacking = self.stored.lacking(positions)
            if not lacking:
                break
            if self._gives_up():
                raise Interrupted("stop")
            if not running and not self._hidden(positions):
                raise Interrupted("missing")
            time.sleep(_POLL_SECONDS)
        return self.stored[positions]

    def _hidden(self, positions: np.ndarray) -> bool:
        """Whether another node had written the lacking rows, or computes them, and this one did not see it yet."""
        files = self.job.logits.files()
        if not isinstance(files, LocalFiles):  # an object store hides nothing
            return False

        stored = self.stored
        assert stored is not None

        def look() -> bool:
            stored.refresh(always=True)
            return self._precompute_running() or self._gives_up() or not stored.lacking(positions)

        return seen(files.path, look)


def _without_parts(number: int, every: np.ndarray, error: Exception) -> GlobalBatch:
    if isinstance(error, Interrupted):
        return GlobalBatch(number, every, interrupted=str(error))
    return GlobalBatch(number, every, failure=error)
