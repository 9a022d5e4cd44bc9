"""Methods of distillation: presets on independent axes. Importable without torch or Ray.

To add a method: an entry in `PRESETS` and in `MethodName` (and, only if it needs one, an axis below with its
arithmetic in `raykd.distillation`), and a test beside `tests/distillation`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raykd.common.errors import ConfigError
from raykd.config.messages import invalid

MethodName = Literal["finetune", "label_smoothing", "kd", "annealing", "weighted", "born_again"]

_DISTIL: dict[str, Any] = {"alpha": 0.5, "temperature": 2.0}
PRESETS: dict[str, dict[str, Any]] = {
    "finetune": {},
    "label_smoothing": {"epsilon": 0.1},  # Szegedy et al. 2016
    "kd": _DISTIL,  # Hinton et al. 2015
    "annealing": {**_DISTIL, "alpha": 1.0, "schedule": "linear"},  # Clark et al. 2019 (BAM)
    "weighted": {**_DISTIL, "weighting": "correctness", "W": 0.75},
    "born_again": {**_DISTIL, "generations": 3},  # Furlanello et al. 2018
}
DEFAULT_METHOD: MethodName = "kd"
TEACHERLESS = ("finetune", "label_smoothing")


class Method(BaseModel):
    """One point on the axes. A field's default is its neutral value: what it is where it does nothing.

    So every run logs the same flat parameters, whatever its method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    type: MethodName = Field(DEFAULT_METHOD, description="the preset: which axes are used, and their defaults")
    alpha: float = Field(0.0, ge=0, le=1, description="weight of the teachers' term; the label gets 1 - alpha")
    temperature: float = Field(1.0, gt=0, description="T, softens teachers and student alike")
    scale_by_t2: bool = Field(True, description="multiply the teachers' term by T^2, so alpha means the same at any T")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how alpha falls over the training (teacher annealing)"
    )
    floor: float = Field(0.0, ge=0, le=1, description="alpha never falls below this; needs a schedule")
    pool: Literal["logits", "probabilities"] = Field(
        "logits",
        description="what is averaged over the teachers: their logits, or their softened probabilities",
    )
    weighting: Literal["mean", "correctness"] = Field(
        "mean",
        description="mean: teachers count alike; correctness: a teacher that is wrong on a decision counts W",
    )
    W: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of a wrong teacher, right ones share the rest; 1 is mean; 0.75 where it is used",
    )
    all_wrong: Literal["mean", "skip"] = Field(
        "mean",
        description="a decision that every teacher gets wrong: distil their mean, or skip it (labels only)",
    )
    correct_by: Literal["decision", "example"] = Field(
        "decision",
        description="QA: start and end each right on its own, or a teacher right only if right on both",
    )
    teacher: str | None = Field(None, description="distil from this one teacher instead of the ensemble")
    epsilon: float = Field(0.0, ge=0, lt=1, description="label smoothing of the gold labels, over allowed classes")
    generations: int = Field(1, ge=1, description="born-again: generation g learns from the student g - 1")
    average_generations: bool = Field(False, description="born-again: also score the average of all generations")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        if isinstance(given, str):  # `method: kd`
            given = {"type": given}
        if not isinstance(given, dict) or given.get("type", DEFAULT_METHOD) not in PRESETS:
            return given  # pydantic says what is wrong
        filled = {**PRESETS[given.get("type", DEFAULT_METHOD)], **given}
        if filled.get("weighting") == "correctness":  # on any preset: its neutral W would do nothing
            filled.setdefault("W", PRESETS["weighted"]["W"])
        return filled

    @model_validator(mode="after")
    def _refuse_unused(self) -> "Method":
        """A setting that its method does not use is a mistake, not a wish."""
        if self.floor > self.alpha:
            raise invalid(self.floor, f"alpha falls from {self.alpha} and cannot end above it", "Lower it", "floor")
        for key in sorted(self.model_fields_set - {"type"}):
            value, field = getattr(self, key), type(self).model_fields[key]
            reason = self.unused(key)
            if reason and value != field.default:
                raise ConfigError(f"method.{key}", value, reason, "Remove it, or choose a method.type that uses it")
        return self

    def unused(self, key: str) -> str | None:
        """Why `key` does nothing under this method; None if it is used."""
        if self.type in TEACHERLESS and key not in ("type", "epsilon"):
            return f"{self.type} has no teachers"
        if self.type == "finetune" and key == "epsilon":
            return "finetune does not smooth labels (label_smoothing does)"
        if key in ("W", "all_wrong", "correct_by") and self.weighting != "correctness":
            return f"{self.type} does not use it: its weighting is {self.weighting}"
        if key == "floor" and self.schedule == "constant":
            return f"{self.type} keeps alpha constant (schedule: constant)"
        if key == "average_generations" and self.generations == 1:
            return f"{self.type} trains one generation"
        return None

    @property
    def distils(self) -> bool:
        """Whether the teachers' logits are needed at all (alpha = 0 is plain fine-tuning)."""
        return self.alpha > 0

    @property
    def label(self) -> str:
        """A short name for tables: the method and what differs from its preset."""
        preset = PRESETS[self.type]
        shown = {k: v for k, v in self.model_dump().items() if k in preset or v != type(self).model_fields[k].default}
        details = [f"{k}={v}" for k, v in shown.items() if k not in ("type",) and preset.get(k) != v]
        return " ".join([self.type, *details])
