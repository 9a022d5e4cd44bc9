"""The `search` section of a job's YAML. Importable without torch or Ray."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raykd.config.messages import invalid
from raykd.config.methods import OWN_FUNCTIONS, own_function
from raykd.config.section import Section

DEFAULT_TRIALS = 8


class SearchConfig(Section):
    """What `raykd sweep` searches, and its budget."""

    space: dict[str, Any] = Field(
        default_factory=dict,
        description="a dotted key: a list of choices, {uniform: [low, high]}, {log_uniform: [low, high]}, "
        "{integers: [low, high]} or {grid: [...]}; keys of method, training (the student's) and student.model",
    )
    algorithm: Literal["random", "grid", "tpe"] = Field(
        "random", description="how settings are drawn; tpe learns from earlier trials (needs optuna)"
    )
    trials: int | None = Field(
        None, ge=1, description=f"settings that each method tries; default {DEFAULT_TRIALS}, for a grid all of them"
    )
    seed: int = Field(0, ge=0, description="seed for drawing the settings")
    seeds: int = Field(
        3,
        ge=1,
        description="fresh seeds on which each method's best setting is trained again; they differ from the trials' "
        "seeds and from those of teachers that start from the same model; with one seed the report makes no claim",
    )
    metric: str | None = Field(
        None, description="validation metric that chooses a setting; default: the one that chooses checkpoints"
    )
    scheduler: Literal["none", "asha", "median"] = Field(
        "none", description="stops trials that fall behind the others of their method"
    )
    grace: float = Field(0.2, gt=0, le=1, description="share of its steps after which a trial can be stopped")
    concurrency: int | None = Field(None, ge=1, description="most trials at once; default: as many as fit the cluster")
    hours: float | None = Field(
        None, gt=0, description="no trial starts after this time; training on fresh seeds comes after it"
    )
    gpu_hours: float | None = Field(None, gt=0, description="no trial starts after the trials used this much GPU time")

    @field_validator("space", mode="before")
    @classmethod
    def _of_packages(cls, space: Any) -> Any:
        """The same with `module:function` of the functions that installed packages declare."""
        if not isinstance(space, dict):
            return space
        return {key: _named(key, value) if key in OWN_FUNCTIONS else value for key, value in space.items()}

    @model_validator(mode="after")
    def _grids_are_finite(self) -> "SearchConfig":
        if self.algorithm == "tpe" and any(isinstance(v, dict) and "grid" in v for v in self.space.values()):
            key = next(k for k, v in self.space.items() if isinstance(v, dict) and "grid" in v)
            reason = "search.algorithm = tpe draws values and does not try a grid exhaustively"
            raise invalid(self.space[key], reason, "Write its values as a list", f"space.{key}")
        return self


def _named(key: str, value: Any) -> Any:
    """One entry of the space: a list, or a dict of one."""
    if isinstance(value, dict):
        return {kind: _named(key, values) for kind, values in value.items()}
    return [own_function(key, one) for one in value] if isinstance(value, list) else value
