"""A training's state on disk: written whole or not at all, read without unpickling code, the same on every worker."""

import contextlib
import hashlib
import pickle
import random
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from raykd.common.atomic import new_file, quarantine
from raykd.common.errors import TrainingError
from raykd.common.proof import unreadable
from raykd.common.ranks import DistContext
from raykd.common.shared_files import SHOWS_SECONDS, seen
from raykd.models.lora import load_own_state, own_state

CHECKPOINT, BEST = "checkpoint.pt", "best.safetensors"
_CHECKSUM = "raykd.sha256"
_DAMAGED = (EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError)


class Stopwatch:
    """Seconds that a training has taken, in this process and before the checkpoint that it was resumed from."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), 0.0

    def __call__(self) -> float:
        return self._before + time.monotonic() - self._began

    def resume(self, seconds: float) -> None:
        """Add what was spent before. seconds: of the checkpoint."""
        self._before = max(self._before, seconds)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    with new_file(folder / CHECKPOINT) as draft, draft.open("xb") as file:
        # Into an open file: given a path, torch.save does not say that the disk is full.
        torch.save(state | {"id": secrets.token_hex(8)}, file)


def load_checkpoint(folder: Path, context: DistContext = DistContext()) -> dict[str, Any] | None:  # noqa: B008 (frozen)
    """The state of the last checkpoint, the same on every worker; None if there is none.

    The first worker chooses it. A damaged checkpoint, or one whose best weights are damaged, is quarantined, because a
    training that resumed from it could end in weights that are not its best. Raises TrainingError, on every worker, if
    one of them does not see the first one's files.
    """
    path = folder / CHECKPOINT
    state = _whole_checkpoint(folder) if context.is_main else None
    wanted = context.all_gather(_name(state))[0]
    if wanted is None:
        return None

    def visible() -> bool:
        nonlocal state
        with contextlib.suppress(OSError, *_DAMAGED):  # not visible on this node yet, or an earlier checkpoint
            state = torch.load(path, map_location="cpu", weights_only=True)
            return _name(state) == wanted
        return False

    _all_see(path, context, context.is_main or seen(path, visible))
    return state


def _whole_checkpoint(folder: Path) -> dict[str, Any] | None:
    path, best = folder / CHECKPOINT, folder / BEST
    if not path.exists():
        return None
    if not (reason := unreadable(path)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            known = {name: state[name] for name in ("model", "optimizer", "step", "best", "seen")}
            reason = _damage_of_best(best) if known["best"] > -float("inf") else ""
            if not reason:
                return state
            if best.exists():
                quarantine(best, reason)
            reason = f"it belongs to {BEST}, which is missing or damaged"
        except _DAMAGED as error:
            reason = f"{type(error).__name__}: {error}"
    quarantine(path, reason)
    return None


def _name(state: dict[str, Any] | None) -> tuple[str, int] | None:
    """Identifies a checkpoint. Those of an older raykd have no id."""
    return (state.get("id", ""), state["step"]) if state else None


def _all_see(path: Path, context: DistContext, sees: bool) -> None:
    if blind := [rank for rank, each in enumerate(context.all_gather(sees)) if not each]:
        raise TrainingError(
            f"{path}: worker 0 has written it, and these workers do not see it: {', '.join(map(str, blind))}. All "
            f"nodes must share the folder `output`, and see within {SHOWS_SECONDS:.0f} s what another one has written"
        )


def save_best(folder: Path, model: torch.nn.Module) -> None:
    # Tied weights share memory, which safetensors refuses, so each name gets its own copy.
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in own_state(model).items()}
    with new_file(folder / BEST) as draft:
        save_file(state, draft, metadata={_CHECKSUM: _checksum(state)})


def load_best(folder: Path, model: torch.nn.Module, context: DistContext = DistContext()) -> None:  # noqa: B008 (frozen)
    """Load the best weights, the same on every worker.

    Raises TrainingError, on every worker, if they are damaged or one of them does not see the first one's file.
    """
    path = folder / BEST
    reason, name = _damage_of_best(path) if context.is_main else "", ""
    if context.is_main and not reason:
        name = _stored_checksum(path)
    reason, wanted = context.all_gather((reason, name))[0]
    if reason:
        raise TrainingError(f"{path}: {reason}. Start the command again: it trains this model again")

    def visible() -> bool:
        with contextlib.suppress(OSError, SafetensorError):
            return _stored_checksum(path) == wanted
        return False

    _all_see(path, context, context.is_main or seen(path, visible))
    load_own_state(model, load_file(path))


def _damage_of_best(path: Path) -> str:
    """Why these weights cannot be used; "" if they can. Those of an older raykd have no checksum."""
    try:
        known = _stored_checksum(path)
        if known and _checksum(load_file(path)) != known:
            return f"the weights in {path.name} do not match their checksum"
    except (OSError, SafetensorError) as error:
        return f"{path.name} cannot be read ({error})"
    return ""


def _stored_checksum(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(_CHECKSUM, "")


def _checksum(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the names and bytes of contiguous tensors."""
    checksum = hashlib.sha256()
    for name in sorted(state):
        checksum.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        checksum.update(state[name].reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed a step's random numbers (dropout), so that they depend on nothing before it.

    Then a resumed training, or one in a process that has trained before, gives the same numbers.
    """
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(value)
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes 2 ms more
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
