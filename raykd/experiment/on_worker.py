"""Runs a model once, outside of any training, on the kind of machine that trains or serves it."""

from collections.abc import Callable
from typing import Any, TypeVar

from raykd.cluster.resources import Resources
from raykd.common.environment import begin_task
from raykd.common.errors import UserError
from raykd.experiment.stages import Work

T = TypeVar("T")
R = TypeVar("R")


def on_worker(work: Work, needs: Resources, function: Callable[[T], R], argument: T, timeout_s: float) -> R:
    """function(argument), in a Ray task with these resources; in this process if that is where models run.

    function, argument: picklable, as is what is returned.
    timeout_s: longest time, including that for a free place.
    """
    if not (work.config.ray.cluster or needs.num_gpus):
        return function(argument)
    work.start_ray()
    import ray

    task = ray.remote(_call).options(**needs.options())
    try:
        return ray.get(task.remote(function, argument), timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error.cause.__cause__
        raise


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    begin_task()
    return function(argument)
