"""Models: opened with their processors, loaded, run on encoded rows."""

from raykd.models.loading import load_model
from raykd.models.opened import OpenedModel, open_model

__all__ = ["OpenedModel", "load_model", "open_model"]
