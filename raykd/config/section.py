"""The base class of all sections of a job's YAML. Importable without torch or Ray."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from raykd.common.dotted import FORM

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"  # of an experiment or a teacher
Own = Annotated[str, StringConstraints(pattern=f"^{FORM}$")]  # an object of the user's own code


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
