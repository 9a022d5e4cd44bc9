"""Progress in a job's log."""

import io

from rich.console import Console

from raykd.common.progress import Bars, Count


def test_trainings_are_counted_when_they_end():
    """Also one that has ended early, and one that another command has trained, whose bars are not full."""
    said = Console(file=io.StringIO(), width=200)
    count = Count(Bars(said, None), "fresh seeds", 3)
    count.update("a", 40, 100, "validation accuracy 0.7")
    count.ended("a", "validation accuracy 0.8")
    count.ended("b", "failed")
    count.ended("b", "failed")
    lines = said.file.getvalue().splitlines()
    assert lines[0] == "fresh seeds: 0/3"
    assert lines[1:3] == ["fresh seeds: 1/3 a: validation accuracy 0.8", "fresh seeds: 2/3 b: failed"]
