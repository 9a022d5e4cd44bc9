"""The logit store: teachers' logits, identified and verified by content."""

from raykd.logits.key import TeacherKey
from raykd.logits.locations import LogitStore
from raykd.logits.reader import StoredLogits
from raykd.logits.store import TeacherLogits

__all__ = ["LogitStore", "StoredLogits", "TeacherKey", "TeacherLogits"]
