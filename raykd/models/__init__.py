"""Models: opened with their processors, loaded, run on encoded rows."""

from raykd.models.loading import load_model, load_processor

__all__ = ["load_model", "load_processor"]
