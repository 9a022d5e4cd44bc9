"""A training's forward and backward pass through torch.compile: `training.compile`."""

import copy

import torch

from raykd.models.torch_compile import backend, check_cache
from raykd.tasks import Task

# Lengths are rounded up to a multiple of it, so that shapes repeat: a CUDA graph is recorded for each.
LENGTHS = 16


def compiled(
    forward: torch.nn.Module, accumulation: int, device: torch.device, repeats_shapes: bool
) -> torch.nn.Module:
    """The module as it is called in a training step, with the same parameters. It is compiled at its first call.

    accumulation: micro-batches of a step. With several there are no CUDA graphs, because a gradient is in a graph's own
        memory, which the next micro-batch would overwrite before the two are added.
    repeats_shapes: whether batches have few shapes. Otherwise there are no CUDA graphs either: recording one for each
        of many takes longer than it saves, and each keeps its memory.

    Raises TrainingError: see `check_cache`.
    """
    check_cache()
    graphs = backend() == "inductor" and device.type == "cuda" and accumulation == 1 and repeats_shapes
    return torch.compile(forward, backend=backend(), mode="reduce-overhead" if graphs else None)  # type: ignore[return-value]


def with_repeated_lengths(task: Task) -> Task:
    """The task, with batches of fewer different lengths where it `repeats_shapes`."""
    padded = copy.copy(task)
    padded.pad_to = LENGTHS
    return padded
