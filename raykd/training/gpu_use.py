"""What one training takes of a GPU: its memory, and the share of the time in which the GPU computes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from raykd.common.environment import begin_task
from raykd.common.ranks import DistContext, local_device
from raykd.training.access import Training
from raykd.training.events import Event, Progressed
from raykd.training.loop import train

WARM_SECONDS = 5.0  # of steps before any is timed: the first ones are slow
TIMED_SECONDS = 5.0
# With training.compile, each new length of a batch is compiled or recorded when it first comes. So steps are timed only
# after so many events in a row that took about equally long, or after so many seconds.
_SETTLED_EVENTS, _MOST_OF_MEDIAN, _LONGEST_WARM_SECONDS = 10, 1.2, 120.0


@dataclass(frozen=True)
class GpuUse:
    """What a training takes of a GPU that it has for itself.

    used_bytes: at its peak, with the process's CUDA context; of its steps, without an evaluation.
    total_bytes: of the GPU.
    busy: the share of a step's time in which the GPU computes, 0 to 1.
    """

    used_bytes: int
    total_bytes: int
    busy: float


def measure_gpu_use(training: Training, stop: Callable[[], bool]) -> Iterator[GpuUse | str | None]:
    """Train for some seconds in a Ray process that holds a GPU.

    training: an endless one.

    Yields None at once, which says that the process has its resources, and then what it has measured, or why it could
    not.
    """
    yield None
    begin_task()
    torch.set_num_threads(max(1, int(training.resources.num_cpus)))
    device = local_device(training.resources.num_gpus)
    if device.type != "cuda":
        yield "torch finds no GPU in its process"
        return
    events: Any = train(training.job, DistContext(device=device), stop)
    try:
        yield _observe(events, device, training.job.training.compile)
    finally:
        events.close()


def settled(seconds: Sequence[float]) -> bool:
    """Whether no step of the last ones was compiled or recorded.

    seconds: of a step, in the mean between two events, which come about once a second.
    """
    last = sorted(seconds[-_SETTLED_EVENTS:])
    return len(last) == _SETTLED_EVENTS and last[-1] <= _MOST_OF_MEDIAN * last[len(last) // 2]


def _observe(events: Iterator[Event], device: torch.device, compiled: bool) -> GpuUse | str:
    """Time a training's steps, then profile some more: the profiler makes the host, and so the whole step, slower.

    Returns what it takes, or why that could not be measured.
    """
    steps = (event.step for event in events if isinstance(event, Progressed))

    def after(least: float) -> int | None:
        """The number of steps done after so many seconds, when the GPU has done them, too; None: it has ended."""
        step = next(steps, None)  # the first one loads the model
        until = time.monotonic() + least
        while step is not None and time.monotonic() < until:
            step = next(steps, None)
        torch.cuda.synchronize(device)
        return step

    def warmed() -> int | None:
        """`after` the steps that are slow."""
        if not compiled:
            return after(WARM_SECONDS)
        step, seconds = next(steps, None), list[float]()
        until = time.monotonic() + _LONGEST_WARM_SECONDS
        while step is not None and not settled(seconds) and time.monotonic() < until:
            since, before = time.monotonic(), step
            step = next(steps, None)
            seconds.append((time.monotonic() - since) / max(1, (step or before) - before))
        return after(WARM_SECONDS)

    first, began = warmed(), time.monotonic()
    torch.cuda.reset_peak_memory_stats(device)  # choosing its precision does not count
    last = after(TIMED_SECONDS)
    seconds = time.monotonic() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        end = after(0.5)
    if first is None or last is None or end is None:
        return "it ended before it was measured"
    if not (computing := computing_seconds(profiler) / (end - last)):
        return "torch's profiler saw nothing of the GPU"
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return GpuUse(
        torch.cuda.max_memory_reserved(device) + context, total, min(1.0, computing * (last - first) / seconds)
    )


def computing_seconds(profiler: profile) -> float:
    """The time of all kernels and copies on the GPU."""
    on_gpu = (e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
    return sum(event.self_device_time_total for event in on_gpu) / 1e6
