"""The logit store: teachers' logits, identified and verified by content."""

from raykd.logits.key import TeacherKey
from raykd.logits.logit_store import LogitStore
from raykd.logits.reader import StoredLogits
from raykd.logits.teacher_logits import TeacherLogits

__all__ = ["LogitStore", "StoredLogits", "TeacherKey", "TeacherLogits"]
