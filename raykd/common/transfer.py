"""Tensors between the host and a GPU, without either waiting for the other. On a CPU all of it happens at once."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor there. From pageable memory the copy would wait for what the GPU has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class ToHost:
    """A tensor on its way to the host, behind the work that computes it. `get` waits for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._there = tensor.detach().to("cpu", non_blocking=True)  # pinned, where it is a copy
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def get(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._there
