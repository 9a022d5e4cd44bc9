"""Modules that are imported when they are first used: torch, transformers and Ray each take seconds to import.

A command on unchanged input is answered from the store without them. Write, after the other imports,

    if TYPE_CHECKING:
        import torch
    else:
        torch = Late("torch")

with `from __future__ import annotations`, so that annotations do not use the module either.
"""

from importlib import import_module
from types import ModuleType
from typing import Any


class Late(ModuleType):
    """Stands for a module until one of its attributes is read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)
