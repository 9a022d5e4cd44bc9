"""The report as one HTML page and as Markdown."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raykd import __version__
from raykd.report.costs import cost, duration, what_it_cost
from raykd.report.figures import Figure
from raykd.report.judgement import LEVEL, Judgement, Row, leaderboard
from raykd.report.statistics import RESAMPLES, Gain
from raykd.report.words import answer, cannot_say, folds, interval, percent, signed, weights_changed, where_w_acts

NONE = "–"


@dataclass(frozen=True)
class Section:
    """One experiment, ready to be written down. slug: its files' and anchors' prefix."""

    slug: str
    found: Judgement
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
        return {
            "slug": self.slug,
            "title": self.title,
            "answer": self.answer,
            "verdict": found.verdict,
            "facts": _facts(found),
            "gains": _gains(found),
            "columns": _columns(found, rows),
            "rows": [_cells(found, row, rows) for row in rows],
            "generations": _generations(found),
            "cannot_say": cannot_say(found),
            "weights": where_w_acts(found),
            "cost": what_it_cost(cost(found.experiment)),
            "failures": _failures(found),
            "missing": list(dict.fromkeys(found.experiment.missing)),
            "figures": self.figures,
            "how": _how(found),
            "metric": "Validation" if found.experiment.metric == found.experiment.headline
            else f"Validation {found.experiment.metric}",
            "run": found.experiment.id,
        }  # fmt: skip


def summary(sections: Sequence[Section]) -> str:
    """The first line: one experiment's answer, or in how many of several the student beats its teachers."""
    if len(sections) == 1:
        return sections[0].answer
    by_verdict: dict[str, list[str]] = {}
    for section in sections:
        by_verdict.setdefault(section.found.verdict, []).append(section.title)
    beaten = by_verdict.pop("holds", [])
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
    shown = [s.context() for s in sections]
    compared = [_comparison(s) for s in sections] if len(sections) > 1 else []
    environment.globals["zip"] = zip
    text = environment.get_template(template).render(
        sections=shown, compared=compared, summary=summary(sections), version=__version__
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _facts(found: Judgement) -> str:
    experiment = found.experiment
    parts = [experiment.task, f"{len(found.arms.of('teacher'))} teachers ({folds(found)})"]
    if trials := len(experiment.of("trial")):
        parts.append(f"{trials} trials" + (f" ({experiment.algorithm})" if experiment.algorithm else ""))
    if found.seeds:
        parts.append(f"{found.seeds} seed{'s' if found.seeds > 1 else ''}")
    if found.test_examples:
        parts.append(f"{found.test_examples:,} test examples")
    return " · ".join(filter(None, parts))


def _gains(found: Judgement) -> list[dict[str, Any]]:
    """The best method's three gains, to be drawn on one axis."""
    others = (
        (found.finetune, "over fine-tuning"),
        (found.teacher, "over the best teacher"),
        (found.ensemble, "against the ensemble"),
    )
    gains = [(text, found.gain(found.best, other)) for other, text in others if found.best and other]
    reach = _reach([gain for _, gain in gains])
    return [_drawn(found, gain, reach) | {"label": text} for text, gain in gains]


def _reach(gains: list[Gain]) -> float:
    """The largest distance from 0 that is to be drawn."""
    ends = [abs(x) for g in gains for x in (g.value, g.low, g.high) if math.isfinite(x)]
    return max([*ends, 1e-9]) * 1.05


def _drawn(found: Judgement, gain: Gain, reach: float) -> dict[str, Any]:
    """Text, and places on an axis from 0 to 100 with no difference at 50."""
    place = {name: 50 + 50 * getattr(gain, name) / reach for name in ("value", "low", "high")}
    text = {"value": signed(gain.value * found.scale, found.decimals), "interval": interval(gain, found)}
    return {**text, "shown": gain.shown, "at": place}


def _columns(found: Judgement, rows: list[Row]) -> dict[str, bool]:
    """Which optional columns have anything in them."""
    return {name: any(not math.isnan(getattr(row, name)) for row in rows)
            for name in ("ece", "seconds", "gpu_seconds", "kept")}  # fmt: skip


def _cells(found: Judgement, row: Row, rows: list[Row]) -> dict[str, Any]:
    same = found.experiment.metric == found.experiment.headline
    validation = percent(row.validation, found) if same else f"{row.validation:.4g}"
    gain = _drawn(found, row.gain, _reach([r.gain for r in rows if r.gain])) if row.gain else None
    return {
        "name": row.arm.name,
        "kind": row.arm.kind,
        "best": row.arm is found.best,
        "setting": row.arm.setting,
        "seeds": str(len(row.arm.runs)) if row.arm.trained else "",
        "validation": NONE if math.isnan(row.validation) else validation,
        "test": percent(row.test, found),
        "sd": "" if math.isnan(row.sd) else f"{row.sd * found.scale:.{found.decimals}f}",
        "gain": gain,
        "kept": f"{row.kept:.0%}".replace("-", "−") if not math.isnan(row.kept)
        else "n/a" if row.arm.kind in ("method", "control") else NONE,
        "ece": NONE if math.isnan(row.ece) else f"{row.ece:.3f}",
        "seconds": NONE if math.isnan(row.seconds) else duration(row.seconds),
        "gpu_seconds": NONE if math.isnan(row.gpu_seconds) else f"{row.gpu_seconds:,.0f}",
    }  # fmt: skip


def _generations(found: Judgement) -> list[str]:
    """Born-again: every generation's test score, for gains saturate and are not monotone."""
    lines = []
    for arm in found.arms.of("method"):
        if arm.runs[0].number("method.generations", 1) > 1:
            name = f"generations/test_{found.experiment.headline}"
            curves = [c for r in arm.runs if (c := list(found.experiment.history(r, name).values()))]
            if curves and len({len(c) for c in curves}) == 1:
                means = [sum(c) / len(c) for c in zip(*curves, strict=True)]
                lines.append(f"{arm.name}, test by generation: {', '.join(percent(m, found) for m in means)}.")
    return lines


def _failures(found: Judgement) -> list[str]:
    """Trials that failed, by their reason."""
    reasons: dict[str, int] = {}
    failed = [t for t in found.experiment.of("trial") if t.state == "failed" or "raykd.failure" in t.tags]
    for trial in failed:
        reason = (
            f"{trial.tags.get('raykd.arm', trial.method)}: {trial.tags.get('raykd.failure', 'no reason was logged')}"
        )
        reasons[reason] = reasons.get(reason, 0) + 1
    return [f"{count} × {reason}" for reason, count in sorted(reasons.items())]


def _how(found: Judgement) -> list[str]:
    experiment, contexts = found.experiment, found.arms.contexts["test"]
    examples = "contexts (all questions of one at once)" if contexts else "examples"
    lines = [
        f"Methods, settings and the best teacher are chosen on validation {experiment.metric}; test is only reported.",
    ]
    if found.means and found.means.drawn is not None:
        lines.append(
            f"Intervals: percentile bootstrap, {RESAMPLES:,} resamples, crossed over seeds and test {examples}; two "
            "models are compared on the same examples, their seeds are drawn apart (Owen 2007; seeds' deviations are "
            "widened by √(n/(n−1)), Hesterberg 2015)."
        )
        if found.compared > 1:
            lines.append(
                f"Corrected for {found.compared} methods compared (Bonferroni): each interval is at "
                f"{found.level:.2%}, so that all of them hold at once in {LEVEL:.0%} of such experiments."
            )
    if found.best:
        lines.append(
            "“The student beats its teachers” is said only if the interval of its gain over every single teacher lies "
            "above 0. “Not shown” is not “false”."
        )
    lines.append("Share kept: the method's gain over fine-tuning, as a share of the ensemble's; n/a if that has none.")
    if any(row.arm.values("final_test/ece") for row in leaderboard(found)):
        lines.append("ECE: expected calibration error on test, 15 bins (Guo et al. 2017); lower is better.")
    return lines


def _comparison(section: Section) -> dict[str, Any]:
    found = section.found
    share = weights_changed(found)
    cells = {text["label"]: text for text in _gains(found)}
    best = found.best
    return {
        "slug": section.slug,
        "title": section.title,
        "task": found.experiment.task,
        "best": best.name if best else NONE,
        "setting": best.setting if best else "",
        "test": percent(best.mean(f"final_test/{found.experiment.headline}"), found) if best else NONE,
        "headline": found.experiment.headline,
        "gains": [cells.get(label) for label in ("over fine-tuning", "over the best teacher", "against the ensemble")],
        "changed": NONE if math.isnan(share) else f"{share:.1%}",
        "folds": folds(found),
        "verdict": found.verdict,
    }
