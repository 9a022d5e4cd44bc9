"""The report as one HTML page and as Markdown."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raykd import __version__
from raykd.report.analysis import Analysis, leaderboard
from raykd.report.caveats import cannot_say, failures, how_it_was_made
from raykd.report.conclusion import answer, spelled
from raykd.report.costs import cost, what_it_cost
from raykd.report.figures import Figure
from raykd.report.format import axis_of, best_gains, cells, comparison, facts, gains, generations, optional_columns
from raykd.report.weights import where_w_acts


@dataclass(frozen=True)
class Section:
    """One experiment, ready to be written down. slug: its files' and anchors' prefix."""

    slug: str
    found: Analysis
    figures: list[Figure]

    @property
    def title(self) -> str:
        return self.found.experiment.name

    @property
    def answer(self) -> str:
        return answer(self.found)

    def context(self) -> dict[str, Any]:
        """What both templates show."""
        found = self.found
        rows = leaderboard(found)
        opening, separator, conclusion = self.answer.rpartition("; ")
        if found.verdict == "no student":
            opening, separator, conclusion = self.answer, "", ""
        return {
            "slug": self.slug,
            "title": self.title,
            "answer": self.answer,
            "opening": opening + separator,
            "conclusion": conclusion,
            "facts": facts(found),
            "gains": gains(found),
            "columns": optional_columns(rows),
            "rows": [cells(found, row, rows) for row in rows],
            "generations": generations(found),
            "cannot_say": cannot_say(found),
            "weights": where_w_acts(found),
            "cost": what_it_cost(cost(found.experiment)),
            "failures": failures(found),
            "missing": list(dict.fromkeys(found.experiment.missing)),
            "figures": self.figures,
            "how": how_it_was_made(found),
            "metric": "Validation" if found.experiment.metric == found.experiment.primary_metric
            else f"Validation {spelled(found.experiment.metric)}",
            "run": found.experiment.id,
        }  # fmt: skip


def summary(sections: Sequence[Section]) -> str:
    """The first line: one experiment's answer, or in how many of several the student beats its teachers."""
    if len(sections) == 1:
        return sections[0].answer
    by_verdict: dict[str, list[str]] = {}
    for section in sections:
        by_verdict.setdefault(section.found.verdict, []).append(section.title)
    beaten = by_verdict.pop("shown", [])
    text = f"In {len(beaten)} of {len(sections)} experiments the student is shown to beat its teachers"
    text += f" ({', '.join(beaten)})" if beaten else ""
    return text + "".join(f"; {verdict}: {', '.join(names)}" for verdict, names in by_verdict.items()) + "."


def html(sections: Sequence[Section]) -> str:
    """Self-contained: the figures are in it, and it asks for nothing from outside."""
    return _render("report.html.j2", sections, True)


def markdown(sections: Sequence[Section]) -> str:
    return _render("report.md.j2", sections, False)


def _render(template: str, sections: Sequence[Section], escape: bool) -> str:
    environment = Environment(
        loader=PackageLoader("raykd.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = lambda data: "data:image/png;base64," + base64.b64encode(data).decode()
    environment.filters["cell"] = lambda text: re.sub(r"\s*\n\s*", " ", str(text)).replace("|", r"\|")
    environment.filters["unbroken"] = _unbroken
    shown = [s.context() for s in sections]
    ends = [axis_of(s.found, best_gains(s.found).values()) for s in sections]
    axis = min(low for low, _ in ends), max(high for _, high in ends)
    compared = [comparison(s.found, s.slug, axis) for s in sections] if len(sections) > 1 else []
    environment.globals["zip"] = zip
    text = environment.get_template(template).render(
        sections=shown, compared=compared, summary=summary(sections), version=__version__
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _unbroken(text: str) -> str:
    """No line ends within an equation or an interval."""
    return re.sub(r" (=|to(?= [+−0])) ", "\u00a0\\1\u00a0", text)
