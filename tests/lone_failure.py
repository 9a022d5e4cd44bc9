"""Rows to train on that one of several workers cannot read, or the first process."""

from pathlib import Path
from typing import Any

import numpy as np

from raykd.common.errors import TrainingError


class OnlyFor:
    """(N,) positions for the first worker; for another one an error, where the workers do not agree first."""

    def __init__(self, positions: np.ndarray, error: Exception | None = None) -> None:
        self.positions, self.error = positions, error or TrainingError("the second worker cannot read them")

    def astype(self, kind: Any) -> np.ndarray:
        return self.positions.astype(kind)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_rank() == 1:
            raise self.error
        return self.positions


class NotAtFirst:
    """(N,) positions; an error for who asks first, who leaves a file behind."""

    def __init__(self, positions: np.ndarray, error: Exception, marker: Path) -> None:
        self.positions, self.error, self.marker = positions, error, marker

    def astype(self, kind: Any) -> np.ndarray:
        return self.positions.astype(kind)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if not self.marker.exists():
            self.marker.touch()
            raise self.error
        return self.positions
