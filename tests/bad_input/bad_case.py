"""A command that must be refused, and what its one line names."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

REVIEWS, QUESTIONS = "reviews.yaml", "questions.yaml"
GIVEN = "teachers.a.recipe=null"
LIVE = "logits.mode=live"


@dataclass(frozen=True)
class Case:
    name: str
    _: KW_ONLY
    job: str = REVIEWS
    overrides: Sequence[str] = ()
    key: str
    value: str
    names: Sequence[str]  # what the reason and the hint name, in this order: keys, values, ranges, settings, rows

    def check(self, line: str) -> None:
        """`key = value: reason. hint`, with everything named in its place."""
        assert line.startswith(f"{self.key} = ")
        at = len(self.key)
        for part in (self.value, *self.names):
            assert part in line[at:], line
            at = line.index(part, at) + len(part)
