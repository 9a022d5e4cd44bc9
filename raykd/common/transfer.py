"""Transfers between the host and a GPU that make neither wait for the other. On a CPU they are immediate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to a device. Pinned, because a copy from pageable memory would wait for the GPU's queue."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def places(exists: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(D,) int64 on the device: where (B, H) bool is True, counted over both axes.

    exists: on the host, since looking for them on a GPU would make the host wait.
    """
    return to_device(exists.flatten().nonzero()[:, 0], device)


class ToHost:
    """A tensor that is being copied to the host once its computation finishes. `get` waits for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=True)  # into pinned memory, if it is on a GPU
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def get(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._copy
