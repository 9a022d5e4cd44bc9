"""torch.compile, for a training's steps and for a teacher's batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.common.errors import TrainingError
from raykd.common.late import Late
from raykd.common.private_folder import WRITE, own_folder

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

# Environment variable that names another of torch's backends than inductor, which needs a compiler.
BACKEND = "RAYKD_COMPILE_BACKEND"


def backend() -> str:
    return os.environ.get(BACKEND, "inductor")


def check_cache() -> None:
    """Raise TrainingError if others can write to the folder whose code torch runs: it is in /tmp, with a known name.

    If it does not exist, it is created for this user. TORCHINDUCTOR_CACHE_DIR, which is the user's matter, does not
    move all of it: the precompiled headers stay.
    """
    from torch._inductor.runtime.runtime_utils import default_cache_dir

    folder = Path(default_cache_dir())
    try:
        own_folder(folder, WRITE)
    except OSError as error:
        raise TrainingError(f"torch.compile would run code from {folder}, but: {error}. Remove it") from None


def compiled_for_all_shapes(model: torch.nn.Module) -> torch.nn.Module:
    """The model as it is called, with the same parameters and hooks. It is compiled at its first call, for all shapes.

    By itself torch compiles for the first shape alone, and again, for all, when it meets a second one. Raises
    TrainingError: see `check_cache`.
    """
    check_cache()
    return torch.compile(model, dynamic=True, backend=backend())  # type: ignore[return-value]
