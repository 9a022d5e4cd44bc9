"""The context of a running command, which every stage takes."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from raykd.config.schema import Config
from raykd.plan.prepare import Prepared
from raykd.tracking.recorder import Recorder

Texts = dict[int, str]  # what a model has written, by the raw test rows' positions


@dataclass(frozen=True)
class Work:
    """The context of a running command.

    gpus: of the cluster.
    start_ray: starts Ray unless it runs; called before anything that needs it.
    """

    config: Config
    prepared: Prepared
    console: Console
    recorder: Recorder
    gpus: float
    start_ray: Callable[[], None] = lambda: None

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)
