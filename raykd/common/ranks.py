"""The workers of one training: what each must know of the others, and the sums that they share."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class DistContext:
    """One worker among `world`. With one worker every operation is the identity.

    host: the process group for what is on the host, where the default one (NCCL) takes GPUs only; None: that one.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over the workers, on each of them."""
        if self.world > 1:
            dist.all_reduce(values, group=self.host if values.device.type == "cpu" else None)
        return values

    def all_gather(self, part: Any) -> list[Any]:
        """Every worker's part, in the order of ranks, on each of them."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part, self.host)
        return parts

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(self.host)


def local_device(num_gpus: float) -> torch.device:
    """The first GPU that this process sees, if it asked for any: Ray hides none from who did not."""
    return torch.device("cuda", 0) if num_gpus and torch.cuda.is_available() else torch.device("cpu")
