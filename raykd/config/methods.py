"""Methods of distillation: presets on independent axes. Importable without torch or Ray.

To add a method, add an entry to `PRESETS` and to `MethodName`. If the axes cannot express it, also add an axis to
`Method`, its arithmetic to `raykd.distillation`, and a test to `tests/distillation`.
"""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from raykd.common.dotted import is_dotted
from raykd.common.entry_points import own_path
from raykd.common.errors import ConfigError
from raykd.config.messages import choices, invalid
from raykd.config.section import Own, Strict

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
# The axes of regression. The others change distributions over classes, which values do not have.
_AXES_OF_VALUES = {"type", "alpha", "schedule", "floor", "weighting", "W", "all_wrong", "correct_by", "teacher"}
_AXES_OF_VALUES |= {"generations", "average_generations"}


class Method(Strict):
    """One point on the axes. A field's default is its neutral value, with which it has no effect.

    So every run logs the same flat parameters, whatever its method.
    """

    type: MethodName = Field(DEFAULT_METHOD, description="the preset: which axes are used, and their defaults")
    alpha: float = Field(0.0, ge=0, le=1, description="weight of the teachers' term; the label's term has 1 - alpha")
    temperature: float = Field(1.0, gt=0, description="T, softens both the teachers and the student")
    scale_by_t2: bool = Field(
        True, description="multiply the teachers' term by T^2, so that alpha means the same at any T"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how alpha falls over the training (teacher annealing)"
    )
    floor: float = Field(0.0, ge=0, le=1, description="alpha never falls below this; needs a schedule")
    pool: Literal["logits", "probabilities"] = Field(
        "logits",
        description="what is averaged over the teachers: their logits, or their softened probabilities",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] | Own = Field(
        "forward_kl",
        description="the teachers' term, with p of the teachers and q of the student: forward_kl is the sum of "
        "p log(p / q), reverse_kl that of q log(q / p), jsd the generalized Jensen-Shannon divergence; or your own: "
        "module:function, or an installed package's name",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jsd: share of the teachers in the mixture with the student")
    weighting: Literal["mean", "correctness", "likelihood", "entropy"] | Own = Field(
        "mean",
        description="mean: all teachers have the same weight; correctness: a teacher that is wrong on a decision has "
        "weight W; likelihood: the more probable the label is to a teacher, the more weight it has; entropy: the "
        "surer a teacher is, the more weight it has; or your own: module:function, or an installed package's name",
    )
    weight_temperature: float = Field(
        1.0, gt=0, description="likelihood, entropy: softens the teachers' weights; near 0 the best one has them all"
    )
    W: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of a wrong teacher (the right ones share the rest); 1 equals mean; default 0.75 if "
        "weighting is correctness",
    )
    all_wrong: Literal["mean", "skip"] = Field(
        "mean",
        description="a decision that every teacher gets wrong: mean distils their mean, skip uses only the label",
    )
    correct_by: Literal["decision", "example"] = Field(
        "decision",
        description="rows of several decisions, such as QA's start and end: decision weighs teachers on each one "
        "separately; example counts a teacher as right only if it is on all of them, or takes their mean",
    )
    teacher: str | None = Field(None, description="distil from this one teacher instead of the ensemble")
    epsilon: float = Field(0.0, ge=0, lt=1, description="label smoothing of the gold labels, over allowed classes")
    generations: int = Field(1, ge=1, description="born-again: generation g learns from the student of generation g-1")
    average_generations: bool = Field(False, description="born-again: also score the average of all generations")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        if isinstance(given, str):  # `method: kd`
            given = {"type": given}
        if not isinstance(given, dict) or given.get("type", DEFAULT_METHOD) not in PRESETS:
            return given  # pydantic raises the error
        filled = {**PRESETS[given.get("type", DEFAULT_METHOD)], **given}
        if filled.get("weighting") != "correctness" and "W" not in given:
            filled.pop("W", None)  # of the preset `weighted`, with another weighting
        if filled.get("weighting") == "correctness":  # on any preset, because the neutral W has no effect
            filled.setdefault("W", PRESETS["weighted"]["W"])
        return filled

    @field_validator("weighting", "divergence", mode="before")
    @classmethod
    def _of_a_package(cls, value: Any, info: ValidationInfo) -> Any:
        return own_function(f"method.{info.field_name}", value)

    @model_validator(mode="after")
    def _refuse_unused(self) -> "Method":
        """Reject settings that the method does not use."""
        if self.floor > self.alpha:
            raise invalid(self.floor, f"alpha falls from {self.alpha} and cannot end above it", "Lower it", "floor")
        for key in sorted(self.model_fields_set - {"type"}):
            value, field = getattr(self, key), type(self).model_fields[key]
            reason = self.unused(key)
            if reason and value != field.default:
                raise ConfigError(f"method.{key}", value, reason, "Remove it, or choose a method.type that uses it")
        return self

    def unused(self, key: str) -> str | None:
        """The reason why `key` has no effect with this method; None if it is used."""
        if self.type in TEACHERLESS and key not in ("type", "epsilon"):
            return f"{self.type} has no teachers"
        if self.type == "finetune" and key == "epsilon":
            return "finetune does not smooth labels (label_smoothing does)"
        uses = {"W": ("correctness",), "all_wrong": ("correctness",), "weight_temperature": ("likelihood", "entropy")}
        uses["correct_by"] = ("correctness", "likelihood", "entropy")
        if key in uses and self.weighting not in uses[key]:
            return f"{self.type} does not use it: its weighting is {self.weighting}"
        if key == "beta" and self.divergence != "jsd":
            return f"{self.type} does not use it: its divergence is {self.divergence}"
        if key == "floor" and self.schedule == "constant":
            return f"{self.type} keeps alpha constant (schedule: constant)"
        if key == "average_generations" and self.generations == 1:
            return f"{self.type} trains one generation"
        return None

    @property
    def own_functions(self) -> dict[str, str]:
        """The functions of the user's own code that the method uses: `module:name` by the config's key."""
        named = {"method.weighting": self.weighting, "method.divergence": self.divergence}
        return {key: path for key, path in named.items() if self.distils and is_dotted(path)}

    @property
    def distils(self) -> bool:
        """Whether the method needs the teachers' logits (alpha = 0 is plain fine-tuning)."""
        return self.alpha > 0

    @property
    def label(self) -> str:
        """A short name for tables: the method and the settings that differ from its preset."""
        return self.label_without()

    def label_without(self, *hidden: str) -> str:
        """The same without some keys."""
        preset = PRESETS[self.type]
        shown = {k: v for k, v in self.model_dump().items() if k in preset or v != type(self).model_fields[k].default}
        details = [f"{k}={v}" for k, v in shown.items() if k not in ("type", *hidden) and preset.get(k) != v]
        return " ".join([self.type, *details])


OWN_FUNCTIONS = ("method.weighting", "method.divergence")  # keys that can name a function of the user's own code


def own_function(key: str, value: Any) -> Any:
    """`module:function` of what an installed package declares for a key; any other value unchanged. ConfigError."""
    return own_path(key, value, tuple(choices(Method.model_fields[key.removeprefix("method.")].annotation)))


def for_values(given: Any) -> Any:
    """A job's `method` section, before it is validated, for a task that predicts values.

    The presets' temperature is 1, because values are not softened. A temperature that the user sets stays.
    """
    if given is None or isinstance(given, str):
        given = {} if given is None else {"type": given}
    return {"temperature": 1.0, **given} if isinstance(given, dict) else given


def check_for_values(method: Method) -> None:
    """Raise ConfigError for a setting that has no meaning for a task that predicts values."""
    if method.type == "label_smoothing":
        reason, hint = "regression has no classes over which a label could be smoothed", "Use another method"
        raise ConfigError("method.type", method.type, reason, hint)
    if method.weighting not in ("mean", "correctness"):
        reason, hint = "it needs the probabilities of classes, and regression has values", "Use mean or correctness"
        raise ConfigError("method.weighting", method.weighting, reason, hint)
    for key, field in Method.model_fields.items():
        value = getattr(method, key)
        if key not in _AXES_OF_VALUES and value != field.default:
            reason = "it acts on the probabilities of classes, and regression has values"
            raise ConfigError(f"method.{key}", value, reason, f"Remove it; regression has {field.default}")
