"""The state of one replica, of one queued block, and a teacher's progress."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from raykd.teachers.requests import BlockRequest


@dataclass(frozen=True)
class Progress:
    """How far the precomputation of one teacher's logits is.

    done, total: rows.
    replicas: that are loaded.
    per_replica: rows per second of one busy replica; 0 before the first block.
    restarts: replicas that were replaced.
    computed: rows of `done` that had to be computed; the others were in the store by then.
    seconds: replica-seconds of computing so far.
    took: wall-clock seconds from the first replica being ready to the last answer.
    """

    teacher: str
    done: int
    total: int
    replicas: int
    per_replica: float
    restarts: int
    computed: int
    seconds: float
    took: float


@dataclass(eq=False)
class QueuedBlock:
    """A block to compute, and how often a replica died or hung on it."""

    request: BlockRequest
    deaths: int = 0
    hangs: int = 0


@dataclass(eq=False)
class Replica:
    """One actor of a teacher."""

    actor: Any
    place: int | None  # index of its bundle in the placement group; None: an extra replica on idle resources
    load_ref: Any
    death_ref: Any  # never returns a value; fails when the process dies
    last_sign: float  # when it last started, loaded, answered, or was assigned a block while idle
    loaded: bool = False
    assigned: deque[tuple[Any, QueuedBlock]] = field(default_factory=deque)
    sent: int = 0  # blocks that it was assigned so far
