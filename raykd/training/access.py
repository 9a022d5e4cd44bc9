"""A training as a request: its job, its resources, and how it gets its teachers' logits. Needs no torch and no Ray."""

from dataclasses import dataclass, field
from typing import Any

from raykd.cluster.flags import Flag
from raykd.cluster.resources import Resources
from raykd.plan.job import Job


@dataclass(frozen=True)
class TeacherAccess:
    """How a training gets its teachers' logits. It is not part of the job, because it changes no number.

    precompute_running: up while missing blocks are being computed.
    directory: of live teachers, or None.
    in_flight: live, steps whose logits are requested ahead.
    timeout_s: live, limit of one request.
    """

    precompute_running: Flag | None = None
    directory: Any = None
    in_flight: int = 4
    timeout_s: float = 600.0


@dataclass(frozen=True)
class Training:
    """A job, the resources that it trains with, and how it gets its teachers' logits."""

    job: Job
    resources: Resources
    access: TeacherAccess = field(default_factory=TeacherAccess)
