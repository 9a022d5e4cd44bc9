"""The workers of one training: their collectives, and errors that are raised on all of them.

If only one worker failed, the others would wait in their next collective until its time limit. So an error on one
worker is raised on all of them: by `together` and `each`, and in the training loop, where another collective would cost
time, by a flag in the sum of counts (`agree`, `raise_failure`).
"""

from __future__ import annotations

import pickle
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from raykd.common.errors import TrainingError
from raykd.common.gpu_driver import has_gpu_driver
from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
else:
    torch = Late("torch")
    dist = Late("torch.distributed")


T = TypeVar("T")
_GROUP_LOST = re.compile("gloo|process group has not been initialized")
STOPPED, MISSING, FAILED, WAITING = -4, -3, -2, -1  # indices of the flags at the end of a vector of counts


class CollectiveError(RuntimeError):
    """A collective failed because another worker died, hung or was too slow."""


@dataclass(frozen=True)
class DistContext:
    """One worker of a training. With one worker every collective is the identity.

    rank: of this worker, from 0.
    world: number of workers.
    device: of this worker's model.
    host: the process group for tensors on the host, if the default group (NCCL) takes only GPU tensors; else None.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, values: torch.Tensor, name: str = "a sum") -> torch.Tensor:
        """Element-wise sum over the workers, on each of them.

        name: what is summed, for an error message.
        """
        if self.world > 1:
            with self.named(name):
                dist.all_reduce(values, group=self.host if values.device.type == "cpu" else None)
        return values

    def all_gather(self, part: Any, name: str = "a gather") -> list[Any]:
        """Every worker's part, in the order of ranks, on each of them."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        with self.named(name):
            dist.all_gather_object(parts, part, self.host)
        return parts

    def barrier(self) -> None:
        if self.world > 1:
            with self.named("a barrier"):
                dist.barrier(self.host)

    def agree(self, counts: torch.Tensor, name: str) -> torch.Tensor:
        """The sum of the workers' counts, once no worker is waiting for logits.

        counts: float64; the last four are flags.
        name: what is counted, for an error message.
        """
        while True:
            total = self.all_reduce_sum(counts.clone(), name)
            if not total[WAITING]:
                return total

    def still_waiting(self, size: int, name: str) -> torch.Tensor:
        """Take part in the others' `agree` while this worker waits for logits, so that it does not time out.

        size: of the vector of counts.
        name: what is counted, for an error message.

        Returns the sum, so that a waiting worker notices a stop or a failure.
        """
        counts = torch.zeros(size, dtype=torch.float64)
        counts[WAITING] = 1
        return self.all_reduce_sum(counts, name)

    def each(self, work: Callable[[], T], name: str) -> list[T]:
        """Every worker's result, in the order of ranks, on each of them. An error of one worker is raised on all.

        work: runs on every worker.
        name: what it does, for an error message.
        """
        if self.world == 1:
            return [work()]
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        parts = self.all_gather((result, self._portable(failure)), name)
        self._raise_first([error for _, error in parts], failure)
        return [part for part, _ in parts]

    def together(self, work: Callable[[], T], name: str) -> T:
        """This worker's result, once all workers have one. An error of one worker is raised on all.

        work: runs on every worker.
        name: what it does, for an error message.
        """
        results: list[T] = []
        self.each(lambda: results.append(work()), name)
        return results[0]

    def raise_failure(self, failure: Exception | None, name: str) -> None:
        """Raise on every worker, after a flag said that one failed.

        failure: this worker's own error, or None.
        name: what failed, for an error message.
        """
        if self.world == 1 and failure is not None:
            raise failure
        self._raise_first(self.all_gather(self._portable(failure), name), failure)

    def _raise_first(self, failures: list[Exception | None], own: Exception | None) -> None:
        """Raise the first failed worker's error; on that worker itself the original one, with its traceback."""
        for rank, error in enumerate(failures):
            if error is not None:
                raise own if rank == self.rank and own is not None else error

    def _portable(self, error: Exception | None) -> Exception | None:
        """The error in a form that can be sent to the others. Its attribute `worker` is this worker's rank."""
        if error is None:
            return None
        error.worker = self.rank  # type: ignore[attr-defined]
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:  # a library's error class can fail at either
            other = RuntimeError(f"{type(error).__name__}: {error}")
            other.worker = self.rank  # type: ignore[attr-defined]
            return other

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Errors of a collective in this block name this worker and the operation."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            # A ValueError: Ray Train takes the group away from a worker that it is about to restart.
            if self.world == 1 or not (isinstance(error, dist.DistError) or _GROUP_LOST.search(str(error))):
                raise
            reason = str(error).splitlines()[0]
            raise CollectiveError(
                f"worker {self.rank} of {self.world}: {name}: no answer from the other workers ({reason}). One of them "
                f"died or hangs: see Ray's logs. If it was only slow, raise ray.collective_timeout_s"
            ) from error


def local_device(num_gpus: float) -> torch.device:
    """The first visible GPU if this process requested one, else the CPU. Ray hides no GPU from the other processes.

    Raises TrainingError if the machine has a GPU that torch cannot use: it would be held, and everything computed
    slowly. Without a driver it is one of Ray's logical GPUs, and that is the CPU.
    """
    if not num_gpus or not (torch.cuda.is_available() or has_gpu_driver()):
        return torch.device("cpu")
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter of a build without CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise TrainingError(
            f"a GPU of {socket.gethostname()} is held, but torch {torch.__version__} cannot use it ({reason}). Install "
            f"a build of torch for its driver there, or set num_gpus=0"
        ) from error
    return torch.device("cuda", 0)
