"""The arithmetic of distillation, on one shape: M teachers, B rows, H decisions, C classes. Pure torch.

Its modules are imported when one of their names is first used, because torch takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raykd.distillation.errors import NotFiniteError

if TYPE_CHECKING:
    from raykd.distillation.compact import compact_logits, compact_unchecked
    from raykd.distillation.decisions import check_labels
    from raykd.distillation.divergences import Divergence, decision_divergence
    from raykd.distillation.loss import DistillationLoss, distillation_loss
    from raykd.distillation.schedule import alpha_at
    from raykd.distillation.target import ensemble_target
    from raykd.distillation.values import has_value, value_loss, value_target, value_weights, wrong_values
    from raykd.distillation.weighting import CorrectBy, TeacherWeights, teacher_weights, weights_changed

_MODULES = {
    "CorrectBy": "weighting",
    "DistillationLoss": "loss",
    "Divergence": "divergences",
    "TeacherWeights": "weighting",
    "alpha_at": "schedule",
    "check_labels": "decisions",
    "compact_logits": "compact",
    "compact_unchecked": "compact",
    "decision_divergence": "divergences",
    "distillation_loss": "loss",
    "ensemble_target": "target",
    "has_value": "values",
    "teacher_weights": "weighting",
    "value_loss": "values",
    "value_target": "values",
    "value_weights": "values",
    "weights_changed": "weighting",
    "wrong_values": "values",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "CorrectBy",
    "DistillationLoss",
    "Divergence",
    "NotFiniteError",
    "TeacherWeights",
    "alpha_at",
    "check_labels",
    "compact_logits",
    "compact_unchecked",
    "decision_divergence",
    "distillation_loss",
    "ensemble_target",
    "has_value",
    "teacher_weights",
    "value_loss",
    "value_target",
    "value_weights",
    "weights_changed",
    "wrong_values",
]
