"""The base class of all sections of a job's YAML. Importable without torch or Ray."""

import os
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from raykd.common.dotted import FORM

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"  # of an experiment or a teacher
Own = Annotated[str, StringConstraints(pattern=f"^{FORM}$")]  # an object of the user's own code
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a path, an address or a hub id; ~ is the home folder


class Strict(BaseModel):
    """Refuses what pydantic lets through: unknown keys, infinite numbers, and booleans where numbers belong."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads a bare yes as true, which pydantic would convert to 1."""
        items = isinstance(value, list | tuple)
        if info.field_name and any(isinstance(one, bool) for one in (value if items else [value])):
            kinds = _kinds(cls.model_fields[info.field_name].annotation, items)
            if kinds & {int, float} and bool not in kinds:
                kind = "float_type" if float in kinds else "int_type"
                raise PydanticCustomError(kind, "Input should be a valid number")
        return value


class Section(Strict):
    model_config = ConfigDict(validate_default=True)


def _kinds(annotation: Any, items: bool) -> set[Any]:
    """The types that a field's value can have; with `items`, those that the items of its lists can have."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return set().union(*(_kinds(part, items) for part in parts))
    if origin is Annotated:
        return _kinds(parts[0], items)
    if origin in (list, tuple):
        return _kinds(parts[0], False) if items else {origin}
    if items:
        return set()
    return {type(choice) for choice in parts} if origin is Literal else {origin or annotation}
