"""What the steps, the evaluations and the end of one training have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from raykd.common.ranks import DistContext
from raykd.logits.keep import ALL, Keep
from raykd.models.prediction import Inference
from raykd.plan.job import Job
from raykd.tasks import Task
from raykd.training.access import TeacherAccess
from raykd.training.checkpoint import Stopwatch


@dataclass(frozen=True)
class Setup:
    """What all generations of a training have in common.

    rows: the encoded training rows.
    dtype: of the forward pass, "float32" or "bfloat16".
    stop: called before every step and between the batches of an evaluation; True ends the training.
    """

    job: Job
    task: Task
    processor: Any
    rows: datasets.Dataset
    dtype: str
    context: DistContext
    stop: Callable[[], bool]
    access: TeacherAccess
    stopwatch: Stopwatch

    def inference(self, model: torch.nn.Module, keep: Keep = ALL) -> Inference:
        """keep: what is kept of the model's logits."""
        return Inference([model], self.task, self.processor, self.context.device, self.dtype, keep)

    def on_main(self, work: Callable[[], None], name: str) -> None:
        """Work of the first worker alone, which the others wait for."""
        self.context.together(work if self.context.is_main else _nothing, name)


def _nothing() -> None:
    """What the other workers do while the first one writes."""
