"""torch.compile, for a training's steps and for a teacher's batches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raykd.common.errors import TrainingError
from raykd.common.late import Late
from raykd.common.private_folder import NotPrivateError, private_folder

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

# Environment variable that names another of torch's backends than inductor, which needs a compiler.
BACKEND = "RAYKD_COMPILE_BACKEND"
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def backend() -> str:
    return os.environ.get(BACKEND, "inductor")


def keep_code_private() -> None:
    """Let torch cache the code that it generates, and runs, in a folder of this user, if the user has not named one.

    By itself it takes a folder in /tmp that another user can have made first. Raises TrainingError if raykd's is not
    private.
    """
    if _CACHE in os.environ:
        return
    try:
        os.environ[_CACHE] = str(private_folder() / "compiled")
    except NotPrivateError as error:
        raise TrainingError(f"{error}: code is not compiled into it. Remove it, or set {_CACHE}") from None


def compiled_for_all_shapes(model: torch.nn.Module) -> torch.nn.Module:
    """The model as it is called, with the same parameters and hooks. It is compiled at its first call, for all shapes.

    By itself torch compiles for the first shape first, and for all only when it meets a second one, which takes twice
    as long.
    """
    keep_code_private()
    return torch.compile(model, dynamic=True, backend=backend())  # type: ignore[return-value]
