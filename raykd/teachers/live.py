"""The student's side of live logits: request rows from the teachers several steps ahead, and collect them in order."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.cluster.causes import cause_of
from raykd.cluster.task import raise_user_error
from raykd.common.errors import TrainingError
from raykd.teachers.requests import RowsAnswer, RowsRequest

_POLL_SECONDS = 0.2  # a wait is interrupted this often, to check whether the training is to stop
_REFRESH_SECONDS = 2.0  # how often the directory is read for new replicas
_TRIES = 2  # timeouts of one request before it is an error


Interruption = Literal["stop", "missing"]


class Interrupted(Exception):
    """A wait ended without logits. why: "stop", or "missing" (they are not stored and not being computed)."""

    def __init__(self, why: Interruption) -> None:
        super().__init__(why)
        self.why = why


@ray.remote(num_cpus=0)
class Directory:
    """The replicas that serve each teacher now, by the teacher's fingerprint. The pool writes, students read.

    Students also report replicas that do not answer; the pool takes these reports.
    """

    def __init__(self) -> None:
        self.serving: dict[str, list[Any]] = {}
        self.unresponsive: dict[str, list[str]] = {}

    def put(self, teacher: str, actors: list[Any]) -> None:
        self.serving[teacher] = actors

    def get(self, teacher: str) -> list[Any]:
        return self.serving.get(teacher, [])

    def report_unresponsive(self, teacher: str, actor_id: str) -> None:
        self.unresponsive.setdefault(teacher, []).append(actor_id)

    def take_unresponsive(self, teacher: str) -> list[str]:
        return self.unresponsive.pop(teacher, [])


def directory_here() -> Any:
    """A new directory on the driver's own node, so that it does not die with another node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Directory.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@dataclass(eq=False)
class PendingRequest:
    """A request that has been sent."""

    request: RowsRequest
    ref: Any
    actor: Any
    sent_at: float
    tries: int = 0


@dataclass
class TeacherClient:
    """One worker's connection to one teacher's replicas, and its measurements of their speed.

    rank: of the worker; workers start with different replicas.
    """

    name: str
    fingerprint: str
    directory: Any
    timeout_s: float
    stop: Callable[[], bool]
    rank: int = 0
    actors: list[Any] = field(default_factory=list)
    open: dict[Any, int] = field(default_factory=dict)  # requests in flight, by actor
    rows: int = 0
    seconds: float = 0.0  # the teacher's time for these rows
    waited: float = 0.0  # seconds that this worker waited
    _refresh_ref: Any = None
    _refreshed_at: float = float("-inf")

    def ask(self, request: RowsRequest) -> PendingRequest:
        """Send a request to the least busy replica."""
        started = time.monotonic()
        try:
            actor = self._choose()
        finally:
            self.waited += time.monotonic() - started  # for a replica
        self.open[actor] = self.open.get(actor, 0) + 1
        return PendingRequest(request, actor.answer.remote(request), actor, time.monotonic())

    def answer(self, pending: PendingRequest) -> RowsAnswer:
        """Wait for the answer. If the replica is dead or does not answer in time, another one gets the request.

        Raises Interrupted if the training is to stop, TrainingError if no replica answers.
        """
        started = time.monotonic()
        try:
            while True:
                try:
                    answer = ray.get(pending.ref, timeout=_POLL_SECONDS)
                    if pending.actor in self.open:  # otherwise it was dropped because of another request
                        self.open[pending.actor] -= 1
                    self.rows, self.seconds = self.rows + len(answer.shapes), self.seconds + answer.seconds
                    return answer
                except GetTimeoutError:
                    if self.stop():
                        raise Interrupted("stop") from None
                    if time.monotonic() - max(started, pending.sent_at) > self.timeout_s:
                        self._on_timeout(pending)
                except RayTaskError as error:
                    raise_user_error(error)
                    raise TrainingError(f"teacher {self.name}: {cause_of(error)}") from error
                except RayError:  # it died: another replica gets the same request
                    self._resend(pending)
        finally:
            self.waited += time.monotonic() - started

    def _on_timeout(self, pending: PendingRequest) -> None:
        pending.tries += 1
        self.directory.report_unresponsive.remote(self.fingerprint, pending.actor._actor_id.hex())
        if pending.tries >= _TRIES:
            raise TrainingError(
                f"teacher {self.name}: no answer within logits.timeout_s = {self.timeout_s:g} s, {_TRIES} times. "
                f"Raise it, lower training.batch_size, or check the teacher's model"
            )
        self._resend(pending)

    def _resend(self, pending: PendingRequest) -> None:
        self.open.pop(pending.actor, None)
        self.actors = [a for a in self.actors if a != pending.actor]
        pending.actor = self._choose(without=pending.actor)
        self.open[pending.actor] = self.open.get(pending.actor, 0) + 1
        pending.ref, pending.sent_at = pending.actor.answer.remote(pending.request), time.monotonic()

    def _choose(self, without: Any = None) -> Any:
        """The replica with the fewest of this worker's requests in flight. Waits up to `timeout_s` for one to serve."""
        limit = time.monotonic() + self.timeout_s
        self._refresh(without)
        while not self.actors:
            if self.stop():
                raise Interrupted("stop")
            if time.monotonic() > limit:
                raise TrainingError(
                    f"teacher {self.name}: no replica has served for logits.timeout_s = {self.timeout_s:g} s. "
                    f"See the log for why they were lost, or raise it"
                )
            time.sleep(_POLL_SECONDS)
            self._refreshed_at = float("-inf")
            self._refresh(without)
        first = self.rank % len(self.actors)
        return min(self.actors[first:] + self.actors[:first], key=lambda actor: self.open.get(actor, 0))

    def _refresh(self, without: Any = None) -> None:
        """Read the serving replicas from the directory. Waits for the answer only if no replica is known."""
        now = time.monotonic()
        if self._refresh_ref is None and now - self._refreshed_at > _REFRESH_SECONDS:
            self._refresh_ref, self._refreshed_at = self.directory.get.remote(self.fingerprint), now
        wait_s = 0 if self.actors else _POLL_SECONDS
        if self._refresh_ref is not None and ray.wait([self._refresh_ref], timeout=wait_s)[0]:
            actors = ray.get(self._refresh_ref)
            self.actors, self._refresh_ref = [a for a in actors if a != without], None


class LiveLogits:
    """Live logits of M teachers for the same rows. Teachers with the same fingerprint are asked once."""

    def __init__(self, clients: Sequence[TeacherClient], widths_differ: bool = False) -> None:
        """widths_differ: allow another C for each teacher, as hidden states have."""
        self._widths_differ = widths_differ
        first: dict[str, TeacherClient] = {}
        self.clients = [first.setdefault(client.fingerprint, client) for client in clients]

    def ask(self, requests: Sequence[RowsRequest]) -> list[PendingRequest]:
        """Send one request per teacher, for the same B rows. Returns at once."""
        asked: dict[str, PendingRequest] = {}
        for client, request in zip(self.clients, requests, strict=True):
            if client.fingerprint not in asked:
                asked[client.fingerprint] = client.ask(request)
        return [asked[client.fingerprint] for client in self.clients]

    def answer(self, pending: Sequence[PendingRequest]) -> np.ndarray:
        """Wait for (M, B, H, C) fp16. H and C are the batch's largest; the rest is 0, as from the store."""
        answers: dict[int, list[np.ndarray]] = {}
        for client, one in zip(self.clients, pending, strict=True):
            if id(one) not in answers:
                answers[id(one)] = client.answer(one).rows()
        rows = [answers[id(one)] for one in pending]
        shapes = np.array([[row.shape for row in teacher] for teacher in rows])  # (M, B, 2)
        compared = shapes[..., :1] if self._widths_differ else shapes
        if (compared != compared[0]).any():
            m, b, _ = np.argwhere(compared != compared[0])[0]
            raise TrainingError(
                f"teacher {self.clients[m].name}: logits of shape {tuple(shapes[m, b])}, but {self.clients[0].name} "
                f"gives {tuple(shapes[0, b])}, so their decisions do not line up. Use teachers with the same labels"
            )
        high, wide = shapes.max((0, 1))
        out = np.zeros((len(rows), len(rows[0]), high, wide), np.float16)
        for m, teacher in enumerate(rows):
            for b, row in enumerate(teacher):
                out[m, b, : row.shape[0], : row.shape[1]] = row
        return out

    @property
    def in_flight(self) -> int:
        clients = {client.fingerprint: client for client in self.clients}.values()
        return sum(sum(client.open.values()) for client in clients)
