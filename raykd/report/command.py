"""`raykd report`: a page, made from MLflow alone, that answers whether the student beats its teachers."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raykd.common.atomic import write_atomically
from raykd.common.errors import ConfigError
from raykd.report.analysis import analyze
from raykd.report.locate import Place, find_run, locate, open_store
from raykd.report.page import ReportSection, html, markdown, summary
from raykd.report.parallel_figure import parallel
from raykd.report.read import read
from raykd.report.result_figures import learning_curves, mistakes
from raykd.report.search_figures import alpha_temperature, w_curve
from raykd.tracking.store import one_line

FIGURES = (w_curve, alpha_temperature, learning_curves, mistakes, parallel)

log = logging.getLogger(__name__)


def report(uri: str | None, runs: Sequence[str], output: Path | None, console: Console) -> Path:
    """Write the report of one or several experiments; returns its folder.

    runs: ids of runs (or of their child runs), folders with a `results.json`, or the YAML files of their jobs.
    uri: address of the MLflow store; by default that in each run's `results.json`, otherwise as for a job.
    output: the folder; by default `report` in the folder of a single run's `results.json`, otherwise ./report.

    Writes `report.html` (self-contained), `report.md` and `figures/*.png`, and logs them as artifacts under `report/`
    of each parent run. Raises ConfigError.
    """
    places = [locate(run, uri) for run in runs]
    clients = {place.uri: open_store(place.uri) for place in places}
    sections: list[ReportSection] = []
    for place in places:
        client = clients[place.uri]
        parent = find_run(client, place.uri, place.run_id)
        if parent.info.run_id in [s.analysis.experiment.id for s in sections]:
            continue
        analysis = analyze(read(client, place.uri, parent))
        slug = _slug(analysis.experiment.name, [s.slug for s in sections])
        sections.append(ReportSection(slug, analysis, [figure(analysis) for figure in FIGURES]))
    folder = output or _default_folder(places)
    _write(folder, sections)
    for section in sections:
        try:
            section.analysis.experiment.client.log_artifacts(section.analysis.experiment.id, str(folder), "report")
        except Exception as error:  # for example, a server on which this user has no right to write
            log.warning("the report could not be logged to MLflow (%s)", one_line(error))
    console.print(summary(sections), highlight=False)
    console.print(f"report: {folder / 'report.html'} (also report.md and figures)", highlight=False, soft_wrap=True)
    return folder


def _default_folder(places: Sequence[Place]) -> Path:
    folder = places[0].folder if len(places) == 1 else None
    return (folder or Path.cwd()) / "report"


def _slug(name: str, taken: Sequence[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"
    slug, count = plain, 2
    while slug in taken:
        slug, count = f"{plain}-{count}", count + 1
    return slug


def _write(folder: Path, sections: Sequence[ReportSection]) -> None:
    figures = folder / "figures"
    try:
        figures.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for figure in section.figures:
                for theme, image in figure.images.items():
                    suffix = "" if theme == "light" else f"-{theme}"
                    (figures / f"{section.slug}-{figure.key}{suffix}.png").write_bytes(image)
        write_atomically(folder / "report.html", html(sections).encode())
        write_atomically(folder / "report.md", markdown(sections).encode())
    except OSError as error:
        reason = f"it cannot be written to ({error.strerror})"
        raise ConfigError("--output", folder, reason, "Name another folder") from None
