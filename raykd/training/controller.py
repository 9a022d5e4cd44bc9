"""The process that drives a Ray Train run. Small to import, because Ray Train unpickles it in that process."""

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback  # RunConfig takes it, but does not name it

from raykd.training.events import ControllerStarted


class Introduce(ControllerCallback):
    """Sends the controller's handle, because killing it is the only way to end a run at once."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def after_controller_start(self, train_run_context: Any) -> None:
        me = ray.get_runtime_context().current_actor
        self.queue.actor.put_nowait.remote(ControllerStarted(me))
