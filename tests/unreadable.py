"""A device whose numbers cannot be read: torch's "meta", which computes shapes alone. It stands for a GPU.

What reads from it, or brings a tensor of the host together with one of its own, fails. On a GPU the first makes the
host wait, and the second fails as well.
"""

import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import raykd.models.prediction
import raykd.teachers.serving
import raykd.training.metrics
import raykd.training.trainer
from raykd.common.ranks import DistContext
from raykd.training.trainer import Trainer

UNREADABLE = DistContext(device=torch.device("meta"))
_READS = torch.ops.aten._local_scalar_dense.default


class TransformersReads(TorchDispatchMode):
    """transformers alone reads, in each forward pass: whether a mask masks anything. It gets True."""

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function is _READS and given[0].device == UNREADABLE.device and "/transformers/" in _caller():
            return True
        return function(*given, **(named or {}))


def _caller() -> str:
    """The file of the code that has called torch."""
    frame = sys._getframe(2)
    while "/torch/" in (name := frame.f_code.co_filename):
        assert frame.f_back is not None
        frame = frame.f_back
    return name


class Unread:
    """Stands for `ToHost`: ones, since that is also True, as of what is finite."""

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.device == UNREADABLE.device
        self.ones = torch.ones(tensor.shape, dtype=tensor.dtype)

    def get(self) -> torch.Tensor:
        return self.ones


class EvaluationReached(Exception):
    """Ends a training there, where it reads."""


def compute_on_it(patch: pytest.MonkeyPatch) -> None:
    """Let teachers compute on it, and trainings until their first evaluation.

    It has no autocast and no fused AdamW, and in inference mode torch does not ask `TransformersReads`.
    """
    autocast, enabled, own = torch.autocast, torch.is_autocast_enabled, UNREADABLE.device.type

    def evaluate(_: Trainer) -> None:
        raise EvaluationReached

    patch.setattr(torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == own else autocast(kind, *a, **k))
    patch.setattr(torch, "is_autocast_enabled", lambda kind: kind != own and enabled(kind))
    patch.setattr(torch, "inference_mode", torch.no_grad)
    for module in (raykd.training.metrics, raykd.models.prediction):
        patch.setattr(module, "ToHost", Unread)
    patch.setattr(raykd.training.trainer, "make_optimizer", lambda model, _: torch.optim.AdamW(model.parameters()))
    patch.setattr(Trainer, "evaluate", evaluate)
    patch.setattr(raykd.teachers.serving, "local_device", lambda num_gpus: UNREADABLE.device)
