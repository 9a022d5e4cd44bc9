"""Which errors say that memory has run out or that a GPU has failed: torch has no one type for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_ON_GPU = {"CUDA out of memory", "CUDA error: out of memory", "Triton Error [CUDA]: out of memory"}
_ON_GPU |= {"CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"}
_ON_GPU |= {"CUBLAS_STATUS_NOT_INITIALIZED"}  # no memory for cuBLAS itself, when a process first uses it
_GPU_FAILED = re.compile(r"CUDA( driver)? error|Triton Error \[CUDA\]|CUDNN_STATUS_|CUBLAS_STATUS_|CUSPARSE_STATUS_")
_ON_ANY = ("can't allocate memory", "out of memory")


def gpu_is_full(error: BaseException | None) -> bool:
    """Whether an error says that a GPU's memory has run out. None: no error."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _ON_GPU)


def gpu_failed(error: BaseException | None) -> bool:
    """Whether an error says that a GPU has failed, other than by full memory. None: no error.

    CUDA then answers every later call in the same process with an error, so only a new process can go on.
    """
    known = isinstance(error, getattr(torch, "AcceleratorError", ())) or _GPU_FAILED.search(str(error)) is not None
    return known and not gpu_is_full(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, of a GPU or of the host."""
    text = str(error).lower()
    return gpu_is_full(error) or isinstance(error, MemoryError) or any(words in text for words in _ON_ANY)
