"""What a crew keeps of each of its replicas and blocks, and what it tells of itself."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from raykd.teachers.requests import BlockRequest


@dataclass(frozen=True)
class Progress:
    """What is told of a fill.

    per_replica: rows a second of one replica at work; 0 until the first block. seconds: that replicas have computed
    so far, all of them together. took: seconds from the first replica's being ready to the last answer.
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
class Block:
    request: BlockRequest
    deaths: int = 0
    hangs: int = 0


@dataclass(eq=False)
class Replica:
    actor: Any
    place: int | None  # its bundle; None: an extra one, on what was idle
    loading: Any
    life: Any
    since: float
    loaded: bool = False
    at_hand: deque[tuple[Any, Block]] = field(default_factory=deque)
