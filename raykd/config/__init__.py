"""The job's YAML, typed and checked. Importable without torch or Ray."""

from raykd.config.methods import Method
from raykd.config.schema import Config, ModelConfig, TaskConfig, TrainingConfig

__all__ = ["Config", "Method", "ModelConfig", "TaskConfig", "TrainingConfig"]
