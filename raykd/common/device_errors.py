"""Which errors say that memory has run out or that a GPU has failed: torch has no one type for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from raykd.common.errors import UserError
from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_ON_GPU = {"CUDA out of memory", "CUDA error: out of memory", "Triton Error [CUDA]: out of memory"}
_ON_GPU |= {"CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"}
_ON_GPU |= {"CUBLAS_STATUS_NOT_INITIALIZED"}  # no memory for cuBLAS itself, when a process first uses it
_CUDA = re.compile(
    r"CUDA( driver| unknown)? error|Triton Error \[CUDA\]|CUDACachingAllocator|CU(BLAS|DNN|SPARSE)_STATUS_|NVML"
)
# What the program or its build brings about, again and again.
_CERTAIN = re.compile(
    r"device-side assert|no kernel image|invalid (device function|argument|configuration)|NOT_SUPPORTED|INVALID_VALUE"
    r"|BAD_PARAM"
)
_ON_ANY = ("can't allocate memory", "out of memory")


def gpu_is_full(error: BaseException | None) -> bool:
    """Whether an error says that a GPU's memory has run out. None: no error."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _ON_GPU)


def cuda_error(error: BaseException | None) -> str:
    """The line of an error's text that says which error of CUDA it is, other than of full memory; "" if it is none.

    After most of them CUDA answers every later call in the same process with an error, too. None: no error.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    known = type(error).__name__ == "AcceleratorError" or _CUDA.search(str(error))
    if not known or gpu_is_full(error):
        return ""
    return next((line for line in lines if _CUDA.search(line)), lines[0])


def gpu_failed(error: BaseException | None) -> bool:
    """Whether it is an error of CUDA that a new process may not meet again. None: no error."""
    line = cuda_error(error)
    return bool(line) and not isinstance(error, UserError) and not _CERTAIN.search(line)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, of a GPU or of the host."""
    text = str(error).lower()
    return gpu_is_full(error) or isinstance(error, MemoryError) or any(words in text for words in _ON_ANY)
