"""The report as one HTML page and as Markdown."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from raykd import __version__
from raykd.common.units import counted
from raykd.reports.analysis import LEVEL, Analysis, leaderboard
from raykd.reports.caveats import caveats, failures, how_it_was_made
from raykd.reports.conclusion import conclusion, spelled
from raykd.reports.costs import cost, what_it_cost
from raykd.reports.details import CLASSES, details
from raykd.reports.figures import Figure
from raykd.reports.format import (
    against_others,
    axis_of,
    best_gains,
    cells,
    comparison,
    facts,
    gains,
    generations,
    literal,
    optional_columns,
    table_text,
)
from raykd.reports.more_scores import more_scores
from raykd.reports.origin import mlflow_pages, origin
from raykd.reports.serving_cost import serving_cells, what_serving_costs
from raykd.reports.weights import where_w_acts

LONGEST = 24  # characters of a name that must fit a phone in one line


@dataclass(frozen=True)
class ReportSection:
    """One experiment of the report. slug: the prefix of its files and anchors."""

    slug: str
    analysis: Analysis
    figures: list[Figure]

    @property
    def title(self) -> str:
        return self.analysis.experiment.name

    @property
    def conclusion(self) -> str:
        return conclusion(self.analysis)

    def context(self) -> dict[str, Any]:
        """The values that both templates show."""
        analysis = self.analysis
        rows, serving = leaderboard(analysis), serving_cells(analysis)
        opening, separator, closing = self.conclusion.rpartition("; ")
        if analysis.verdict == "no student":
            opening, separator, closing = self.conclusion, "", ""
        return {
            "slug": self.slug,
            "id": analysis.experiment.id,
            "title": self.title,
            "conclusion": self.conclusion,
            "opening": opening + separator,
            "closing": closing,
            "facts": facts(analysis),
            "origin": origin(analysis.experiment),
            "pages": mlflow_pages(analysis.experiment),
            "gains": gains(analysis),
            "columns": optional_columns(analysis, rows),
            "rows": [cells(analysis, row, rows) for row in rows],
            "at_once": f" The intervals of methods and controls are simultaneous ({LEVEL:.0%})."
            if analysis.intervals > 1 and any(row.gain and math.isfinite(row.gain.low) for row in rows) else "",
            "others": against_others(analysis),
            "more": more_scores(analysis, rows),
            "details": details(analysis),
            "most_classes": CLASSES,
            "generations": generations(analysis),
            "caveats": caveats(analysis),
            "weights": where_w_acts(analysis),
            "serving": serving,
            "serving_rows": serving[0]["rows"] if serving else "",
            "serving_note": what_serving_costs(analysis),
            "cost": what_it_cost(cost(analysis.experiment)),
            "failures": failures(analysis),
            "missing": list(dict.fromkeys(analysis.experiment.missing)),
            "figures": self.figures,
            "how": how_it_was_made(analysis),
            "metric": "Validation" if analysis.experiment.metric == analysis.experiment.primary_metric
            else f"Validation {spelled(analysis.experiment.metric)}",
            "unit": analysis.unit,
            "lower": f"{spelled(analysis.experiment.primary_metric)}: lower is better; a gain is how much lower it is."
            if analysis.experiment.lower else "",
            "run": analysis.experiment.id,
        }  # fmt: skip


def summary(sections: Sequence[ReportSection]) -> str:
    """The first line: the conclusion of one experiment, or in how many of several the student beats its teachers."""
    if len(sections) == 1:
        return sections[0].conclusion
    by_verdict: dict[str, list[str]] = {}
    for section in sections:
        by_verdict.setdefault(section.analysis.verdict, []).append(section.title)
    beaten = by_verdict.pop("shown", [])
    text = f"In {len(beaten)} of {counted(len(sections), 'experiment')} the student is shown to beat its teachers"
    text += f" ({', '.join(beaten)})" if beaten else ""
    text += "".join(f"; {verdict}: {', '.join(names)}" for verdict, names in by_verdict.items()) + "."
    return " ".join([text, *_different_rows(sections)])


def _different_rows(sections: Sequence[ReportSection]) -> list[str]:
    """Which experiments on the same data are scored on different test rows, a sentence each."""
    by_data: dict[tuple[str, str], list[ReportSection]] = {}
    for section in sections:
        experiment = section.analysis.experiment
        by_data.setdefault((experiment.task, experiment.params.get("data", "")), []).append(section)
    return [
        f"{' and '.join(section.title for section in same)} are scored on different test rows."
        for same in by_data.values()
        if len({section.analysis.experiment.test_rows for section in same} - {""}) > 1
    ]


def html(sections: Sequence[ReportSection]) -> str:
    """One self-contained page: the figures are embedded, and nothing is loaded from elsewhere."""
    return _render("report.html.j2", sections, True)


def markdown(sections: Sequence[ReportSection]) -> str:
    return _render("report.md.j2", sections, False)


def _render(template: str, sections: Sequence[ReportSection], escape: bool) -> str:
    environment = Environment(
        loader=PackageLoader("raykd.reports"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = lambda data: "data:image/png;base64," + base64.b64encode(data).decode()
    environment.filters["cell"] = table_text
    environment.filters["literal"] = literal
    environment.filters["unbroken"] = _unbroken
    shown = [s.context() for s in sections]
    compared = [comparison(s.analysis, s.slug, _common_axis(s, sections)) for s in sections if len(sections) > 1]
    environment.globals["zip"] = zip
    text = environment.get_template(template).render(
        sections=shown, compared=compared, summary=summary(sections), version=__version__
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _common_axis(section: ReportSection, sections: Sequence[ReportSection]) -> tuple[float, float]:
    """The axis of a section's gains. Sections whose gains have one unit share it: points, or that of their metric."""

    def unit(one: ReportSection) -> str:
        return one.analysis.points or one.analysis.experiment.primary_metric

    ends = [axis_of(s.analysis, best_gains(s.analysis).values()) for s in sections if unit(s) == unit(section)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _unbroken(text: str) -> Markup:
    """HTML without line breaks within an equation, an interval, or a name with a hyphen."""
    joined = re.sub(r" (=|to(?= [+−0])) ", "\u00a0\\1\u00a0", text)
    return Markup(re.sub(r"\w+(?:-\w+)+", _together, str(escape(joined))))


def _together(name: re.Match[str]) -> str:
    return f'<span class="nowrap">{name[0]}</span>' if len(name[0]) <= LONGEST else name[0]
