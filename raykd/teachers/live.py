"""The student's side of live logits: ask the teachers for rows, several steps ahead, and get the answers in order."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.common.errors import TrainingError, UserError
from raykd.teachers.requests import RowsAnswer, RowsRequest

_LOOK_SECONDS = 0.2  # a wait is interrupted this often, to see whether it still makes sense
_REFRESH_SECONDS = 2.0  # how often it is asked who has joined
_TRIES = 2  # answers that may stay away in time


class Interrupted(Exception):
    """The wait is over without an answer: "stop", or "missing" (nobody computes what the store lacks)."""


@ray.remote(num_cpus=0)
class Directory:
    """Which replicas serve each teacher now, by the teacher's fingerprint. The pool writes, students read."""

    def __init__(self) -> None:
        self.serving: dict[str, list[Any]] = {}
        self.silent: dict[str, list[str]] = {}

    def put(self, teacher: str, actors: list[Any]) -> None:
        self.serving[teacher] = actors

    def get(self, teacher: str) -> list[Any]:
        return self.serving.get(teacher, [])

    def complain(self, teacher: str, actor_id: str) -> None:
        self.silent.setdefault(teacher, []).append(actor_id)

    def complaints(self, teacher: str) -> list[str]:
        return self.silent.pop(teacher, [])


def directory_here() -> Any:
    """A new one, on the driver's own node: no other node's loss ends it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Directory.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@dataclass(eq=False)
class PendingRequest:
    """A request under way."""

    request: RowsRequest
    ref: Any
    actor: Any
    asked: float
    tries: int = 0


@dataclass
class TeacherClient:
    """One teacher's replicas as this worker knows them, and what it has seen of their speed."""

    name: str
    fingerprint: str
    directory: Any
    timeout_s: float
    stop: Callable[[], bool]
    rank: int = 0
    actors: list[Any] = field(default_factory=list)
    open: dict[Any, int] = field(default_factory=dict)  # requests under way, by actor
    rows: int = 0
    seconds: float = 0.0  # the teacher's work on these rows
    waited: float = 0.0  # this worker's time
    _news: Any = None
    _asked_news: float = float("-inf")

    def ask(self, request: RowsRequest) -> PendingRequest:
        started = time.monotonic()
        try:
            actor = self._choose()
        finally:
            self.waited += time.monotonic() - started  # for one to serve
        self.open[actor] = self.open.get(actor, 0) + 1
        return PendingRequest(request, actor.answer.remote(request), actor, time.monotonic())

    def answer(self, question: PendingRequest) -> RowsAnswer:
        """Wait for it. A replica that is gone, or does not answer in time, is replaced by another one.

        Interrupted if the training is to stop; TrainingError if nobody answers.
        """
        started = time.monotonic()
        try:
            while True:
                try:
                    found = ray.get(question.ref, timeout=_LOOK_SECONDS)
                    if question.actor in self.open:  # else it was given up meanwhile, for another request
                        self.open[question.actor] -= 1
                    self.rows, self.seconds = self.rows + len(found.shapes), self.seconds + found.seconds
                    return found
                except GetTimeoutError:
                    if self.stop():
                        raise Interrupted("stop") from None
                    if time.monotonic() - max(started, question.asked) > self.timeout_s:
                        self._too_late(question)
                except RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    raise TrainingError(f"teacher {self.name}: {type(error.cause).__name__}: {error.cause}") from error
                except RayError:  # it died: the same request goes to another one
                    self._again(question)
        finally:
            self.waited += time.monotonic() - started

    def _too_late(self, question: PendingRequest) -> None:
        question.tries += 1
        self.directory.complain.remote(self.fingerprint, question.actor._actor_id.hex())
        if question.tries >= _TRIES:
            raise TrainingError(
                f"teacher {self.name}: no answer within logits.timeout_s = {self.timeout_s:g} s, {_TRIES} times. "
                f"Raise it, ask for less at once (training.batch_size), or look at the teacher's model"
            )
        self._again(question)

    def _again(self, question: PendingRequest) -> None:
        self.open.pop(question.actor, None)
        self.actors = [a for a in self.actors if a != question.actor]
        question.actor = self._choose(without=question.actor)
        self.open[question.actor] = self.open.get(question.actor, 0) + 1
        question.ref, question.asked = question.actor.answer.remote(question.request), time.monotonic()

    def _choose(self, without: Any = None) -> Any:
        """The replica with the fewest of this worker's requests. Waits for one, as long as one may hang."""
        limit = time.monotonic() + self.timeout_s
        self._hear_news(without)
        while not self.actors:
            if self.stop():
                raise Interrupted("stop")
            if time.monotonic() > limit:
                raise TrainingError(
                    f"teacher {self.name}: no replica has served for logits.timeout_s = {self.timeout_s:g} s. "
                    f"See the log for why they went, or raise it"
                )
            time.sleep(_LOOK_SECONDS)
            self._asked_news = float("-inf")
            self._hear_news(without)
        turn = self.rank % len(self.actors)
        return min(self.actors[turn:] + self.actors[:turn], key=lambda actor: self.open.get(actor, 0))

    def _hear_news(self, without: Any = None) -> None:
        """Who serves now. Only a worker that knows nobody waits for the answer."""
        now = time.monotonic()
        if self._news is None and now - self._asked_news > _REFRESH_SECONDS:
            self._news, self._asked_news = self.directory.get.remote(self.fingerprint), now
        if self._news is not None and ray.wait([self._news], timeout=0 if self.actors else _LOOK_SECONDS)[0]:
            actors = ray.get(self._news)
            self.actors, self._news = [a for a in actors if a != without], None


class LiveLogits:
    """M teachers' answers to the same rows. Teachers with the same fingerprint are asked once."""

    def __init__(self, lines: Sequence[TeacherClient]) -> None:
        first: dict[str, TeacherClient] = {}
        self.lines = [first.setdefault(line.fingerprint, line) for line in lines]

    def ask(self, requests: Sequence[RowsRequest]) -> list[PendingRequest]:
        """requests: one a teacher, of the same B rows. Returns at once."""
        asked: dict[str, PendingRequest] = {}
        for line, request in zip(self.lines, requests, strict=True):
            if line.fingerprint not in asked:
                asked[line.fingerprint] = line.ask(request)
        return [asked[line.fingerprint] for line in self.lines]

    def answer(self, questions: Sequence[PendingRequest]) -> np.ndarray:
        """(M, B, H, C) fp16; H, C the batch's largest, the rest 0, as from the store."""
        answers: dict[int, list[np.ndarray]] = {}
        for line, question in zip(self.lines, questions, strict=True):
            if id(question) not in answers:
                answers[id(question)] = line.answer(question).rows()
        rows = [answers[id(question)] for question in questions]
        shapes = np.array([[row.shape for row in teacher] for teacher in rows])  # (M, B, 2)
        if (shapes != shapes[0]).any():
            m, b, _ = np.argwhere(shapes != shapes[0])[0]
            raise TrainingError(
                f"teacher {self.lines[m].name}: logits of shape {tuple(shapes[m, b])} where {self.lines[0].name} gives "
                f"{tuple(shapes[0, b])}: their decisions do not line up. Use teachers with the same labels"
            )
        high, wide = shapes[0].max(0)
        out = np.zeros((len(rows), len(rows[0]), high, wide), np.float16)
        for m, teacher in enumerate(rows):
            for b, row in enumerate(teacher):
                out[m, b, : row.shape[0], : row.shape[1]] = row
        return out

    @property
    def in_flight(self) -> int:
        return sum(sum(line.open.values()) for line in {line.fingerprint: line for line in self.lines}.values())
