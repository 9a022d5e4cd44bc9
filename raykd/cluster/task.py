"""Ray tasks of raykd's own functions, and the errors that they raise. Imports Ray when it starts one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raykd.cluster.resources import Resources
from raykd.common.errors import UserError
from raykd.common.late import Late

if TYPE_CHECKING:
    import ray
    from ray.exceptions import RayTaskError
else:
    ray = Late("ray")


def task_of(function: Callable[..., Any], needs: Resources, retries: int = 0) -> Any:
    """The function as a Ray task with one worker's resources.

    A process that has used one GPU stays on it, with its memory, even if Ray assigns it another. So each task on a GPU
    has a process of its own.

    retries: Ray's own, after the death of its process.
    """
    remote = ray.remote(max_retries=retries, max_calls=1 if needs.num_gpus else 0)(function)
    return remote.options(**needs.options())


def raise_user_error(error: RayTaskError) -> None:
    """Raise the error of the task itself if that is one which the user can fix."""
    if isinstance(error.cause, UserError):
        raise error.cause from error.cause.__cause__
