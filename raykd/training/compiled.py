"""A training's forward and backward pass through torch.compile: `training.compile`."""

import copy

import torch

from raykd.models.torch_compile import backend, check_cache
from raykd.tasks import Task

# Lengths are rounded up to a multiple of it, so that shapes repeat: a CUDA graph is recorded for each.
LENGTHS = 16


def records_graphs(task: Task, accumulation: int, device: torch.device) -> bool:
    """Whether a compiled training's passes are recorded as CUDA graphs.

    task: if its batches have many shapes there are no graphs: recording one for each takes longer than it saves, and
        each keeps its memory.
    accumulation: micro-batches of a step. With several there are none either, because a gradient is in a graph's own
        memory, which the next micro-batch would overwrite before the two are added.
    """
    return backend() == "inductor" and device.type == "cuda" and accumulation == 1 and task.repeats_shapes


def compiled(forward: torch.nn.Module, graphs: bool) -> torch.nn.Module:
    """The module as it is called in a training step, with the same parameters. It is compiled at its first call.

    graphs: whether its passes are recorded as CUDA graphs.

    Raises TrainingError: see `check_cache`.
    """
    check_cache()
    return torch.compile(forward, backend=backend(), mode="reduce-overhead" if graphs else None)  # type: ignore[return-value]


def with_repeated_lengths(task: Task) -> Task:
    """The task, with batches of fewer different lengths where it `repeats_shapes`. For graphs alone.

    Code that is compiled for all lengths needs none of it, and on a CPU the padding takes time: half of SST-2's batches
    have at most 10 tokens.
    """
    padded = copy.copy(task)
    padded.pad_to = LENGTHS
    return padded
