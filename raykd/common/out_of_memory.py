"""Which errors say that memory has run out: torch has no one type for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_ON_GPU = {"CUDA out of memory", "CUDA error: out of memory", "Triton Error [CUDA]: out of memory"}
_ON_GPU |= {"CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"}
_ON_GPU |= {"CUBLAS_STATUS_NOT_INITIALIZED"}  # no memory for cuBLAS itself, when a process first uses it
_ON_ANY = ("can't allocate memory", "out of memory")


def gpu_is_full(error: BaseException | None) -> bool:
    """Whether an error says that a GPU's memory has run out. None: no error."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _ON_GPU)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, of a GPU or of the host."""
    text = str(error).lower()
    return gpu_is_full(error) or isinstance(error, MemoryError) or any(words in text for words in _ON_ANY)
