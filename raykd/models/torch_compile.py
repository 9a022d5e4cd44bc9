"""torch.compile, for a training's steps and for a teacher's batches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

# Environment variable that names another of torch's backends than inductor, which needs a compiler.
BACKEND = "RAYKD_COMPILE_BACKEND"


def backend() -> str:
    return os.environ.get(BACKEND, "inductor")


def compiled_for_all_shapes(model: torch.nn.Module) -> torch.nn.Module:
    """The model as it is called, with the same parameters and hooks. It is compiled at its first call, for all shapes.

    By itself torch compiles for the first shape first, and for all only when it meets a second one, which takes twice
    as long.
    """
    return torch.compile(model, dynamic=True, backend=backend())  # type: ignore[return-value]
