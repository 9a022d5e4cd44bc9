"""Ray Tune where a trial's process is lost otherwise than Tune expects.

Where the memory of a node is nearly full, Ray ends processes of its choice, whose calls raise OutOfMemoryError. Tune
(2.60) takes RayActorError alone for the death of a trial's process, and ends the whole search at any other error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError


@contextmanager
def any_loss_is_a_death() -> Iterator[None]:
    """Inside, such a trial counts as one whose process has died, so that Tune starts another process for it."""
    task_failed, start_failed = RayActorManager._actor_task_failed, RayActorManager._actor_start_failed

    def on_task(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        task_failed(self, tracked_actor_task, _as_death(exception))

    def on_start(self: RayActorManager, tracked_actor: Any, exception: Exception) -> None:
        start_failed(self, tracked_actor, _as_death(exception))

    RayActorManager._actor_task_failed, RayActorManager._actor_start_failed = on_task, on_start
    try:
        yield
    finally:
        RayActorManager._actor_task_failed, RayActorManager._actor_start_failed = task_failed, start_failed


def _as_death(error: Exception) -> Exception:
    if isinstance(error, RayError) and not isinstance(error, RayActorError | RayTaskError):
        return RayActorError(error_msg=str(error))
    return error
