"""A training's state on disk: written whole or not at all, read without unpickling code."""

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


class Stopwatch:
    """Seconds that a training has taken: in this process, and in those before whose checkpoint it goes on from."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), 0.0

    def __call__(self) -> float:
        return self._before + time.monotonic() - self._began

    def goes_on_from(self, seconds: float) -> None:
        self._before = max(self._before, seconds)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    _replace(folder / "checkpoint.pt", lambda draft: torch.save(state, draft))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / "checkpoint.pt"
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def save_best(folder: Path, model: torch.nn.Module) -> None:
    # Tied weights share memory, which safetensors refuses: clones hold each name's values.
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}
    _replace(folder / "best.safetensors", lambda draft: save_file(state, draft))


def load_best(folder: Path, model: torch.nn.Module) -> None:
    model.load_state_dict(load_file(folder / "best.safetensors"))


def _replace(path: Path, write: Any) -> None:
    draft = path.with_name(f"{path.name}.draft")
    write(draft)
    os.replace(draft, path)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers (dropout) of one step depend on nothing before it: a resumed run goes on the same,
    and so does one in a process that has trained before."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(value)
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes 2 ms to note its caller for GPUs that are not
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
