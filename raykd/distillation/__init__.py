"""The arithmetic of distillation, on one shape: M teachers, B rows, H decisions, C classes. Pure torch."""

from raykd.distillation.compact import NotFiniteError, compact_logits, compact_unchecked
from raykd.distillation.decisions import check_labels
from raykd.distillation.divergences import Divergence, decision_divergence
from raykd.distillation.loss import DistillationLoss, distillation_loss
from raykd.distillation.schedule import alpha_at
from raykd.distillation.target import ensemble_target
from raykd.distillation.weighting import CorrectBy, TeacherWeights, teacher_weights, weights_changed

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
    "teacher_weights",
    "weights_changed",
]
