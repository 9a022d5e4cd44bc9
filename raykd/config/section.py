"""The base class of all sections of a job's YAML. Importable without torch or Ray."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from raykd.common.dotted import FORM

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"  # of an experiment or a teacher
Own = Annotated[str, StringConstraints(pattern=f"^{FORM}$")]  # an object of the user's own code
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a path, an address or a hub id; ~ is the home folder


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
