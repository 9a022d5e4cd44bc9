"""Runs a model once, outside of any training, on the kind of machine that trains or serves it."""

from collections.abc import Callable
from typing import Any, TypeVar

from raykd.cluster.resources import Resources
from raykd.common.environment import begin_task
from raykd.common.errors import TrainingError, UserError
from raykd.experiment.stages import Work

T = TypeVar("T")
R = TypeVar("R")


def on_worker(work: Work, needs: Resources, function: Callable[[T], R], argument: T, timeout_s: float) -> R:
    """function(argument), in a Ray task with these resources; in this process if that is where models run.

    function, argument: picklable, as is what is returned.
    timeout_s: longest time, including that for a free place.

    Raises TrainingError if the task's process dies, or if the time is over, when the task is ended.
    """
    if not (work.config.ray.cluster or needs.num_gpus):
        return function(argument)
    work.start_ray()
    import ray

    from raykd.cluster.causes import DEATHS, cause_of

    task = ray.remote(_call).options(**needs.options(), max_retries=0).remote(function, argument)
    try:
        return ray.get(task, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error.cause.__cause__
        raise
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)  # otherwise it would hold its resources for as long as it likes
        raise TrainingError(f"no answer within {timeout_s:.0f} s") from None
    except DEATHS as error:
        raise TrainingError(f"its process died ({cause_of(error)})") from error


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    begin_task()
    return function(argument)
