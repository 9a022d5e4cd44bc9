"""Runs a model once, outside of any training, on the kind of machine that trains or serves it."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from raykd.cluster.resources import Resources
from raykd.cluster.task import raise_user_error, task_of
from raykd.common.environment import begin_task
from raykd.common.errors import TrainingError
from raykd.experiment.work import Work

T = TypeVar("T")
R = TypeVar("R")


def on_worker(work: Work, needs: Resources, function: Callable[[T], R], argument: T, timeout_s: float) -> R:
    """function(argument), in a Ray task with these resources; in this process if that is where models run.

    function, argument: picklable, as is what is returned.
    timeout_s: longest time, including that for a free place.

    Raises TrainingError if Ray ends the task for memory, if its process or node dies more than ray.max_retries times,
    or if the time is over, when the task is ended.
    """
    if not (work.config.ray.cluster or needs.num_gpus):
        return function(argument)
    work.start_ray()
    import ray

    from raykd.cluster.causes import DEATHS, cause_of

    # Without Ray's own retries, which would load a model that does not fit into memory again and again.
    process = task_of(_call, needs)
    limit, deaths = time.monotonic() + timeout_s, 0
    while True:
        task = process.remote(function, argument)
        try:
            return ray.get(task, timeout=max(0.0, limit - time.monotonic()))
        except ray.exceptions.RayTaskError as error:
            raise_user_error(error)
            raise
        except ray.exceptions.GetTimeoutError:
            ray.cancel(task, force=True)  # otherwise it would hold its resources until it ends
            raise TrainingError(f"no answer within {timeout_s:.0f} s") from None
        except DEATHS as error:
            deaths += 1
            if deaths > work.config.ray.max_retries or isinstance(error, ray.exceptions.OutOfMemoryError):
                raise TrainingError(f"its process died ({cause_of(error)})") from error


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    begin_task()
    return function(argument)
