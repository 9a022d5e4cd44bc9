"""The base class of all sections of a job's YAML. Importable without torch or Ray."""

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"  # of an experiment or a teacher


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
