"""The process that drives a Ray Train run. Small to import, because Ray Train unpickles it in that process."""

from typing import Any

import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback  # RunConfig takes it, but does not name it
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

from raykd.cluster.causes import cause_of
from raykd.training.events import ControllerStarted, GroupLost


class Introduce(ControllerCallback):
    """Sends the controller's handle, because killing it is the only way to end a run at once.

    Also says when workers are lost, which Ray Train itself writes only to its log.
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def after_controller_start(self, train_run_context: Any) -> None:
        me = ray.get_runtime_context().current_actor
        self.queue.actor.put_nowait.remote(ControllerStarted(me))

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, RestartingState | ReschedulingState):
            return
        error = current_state.training_failed_error
        no_room = isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)
        if not no_room:  # which is not lost: it is waited for
            self.queue.actor.put_nowait.remote(GroupLost(cause_of(error)))
