"""`raykd report`: from MLflow alone to one page that answers whether the student beats its teachers."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raykd.common.atomic import write_atomically
from raykd.common.errors import ConfigError
from raykd.report.analysis import judge
from raykd.report.locate import Place, find_run, locate, open_store
from raykd.report.page import Section, html, markdown, summary
from raykd.report.parallel_figure import parallel
from raykd.report.read import read
from raykd.report.result_figures import learning_curves, mistakes
from raykd.report.search_figures import alpha_temperature, w_curve
from raykd.tracking.store import one_line

FIGURES = (w_curve, alpha_temperature, learning_curves, mistakes, parallel)

log = logging.getLogger(__name__)


def report(uri: str | None, runs: Sequence[str], output: Path | None, console: Console) -> Path:
    """Write the report of one experiment, or of several side by side; returns its folder.

    runs: ids of runs (or of runs below them), folders with a `results.json`, or the YAML files of their jobs.
    uri: where MLflow is; by default where each run's `results.json` says, else as for a job.
    output: the folder; by default `report` beside the `results.json` of a single run, else ./report.

    It holds `report.html` (self-contained), `report.md` and `figures/*.png`, and is logged to each parent run as
    artifacts under `report/`. Raises ConfigError.
    """
    places = [locate(run, uri) for run in runs]
    clients = {place.uri: open_store(place.uri) for place in places}
    sections: list[Section] = []
    for place in places:
        client = clients[place.uri]
        parent = find_run(client, place.uri, place.run_id)
        if parent.info.run_id in [s.found.experiment.id for s in sections]:
            continue
        found = judge(read(client, place.uri, parent))
        slug = _slug(found.experiment.name, [s.slug for s in sections])
        sections.append(Section(slug, found, [figure(found) for figure in FIGURES]))
    folder = output or _beside(places)
    _write(folder, sections)
    for section in sections:
        try:
            section.found.experiment.client.log_artifacts(section.found.experiment.id, str(folder), "report")
        except Exception as error:  # such as a server that this user may only read from
            log.warning("the report is not in MLflow (%s)", one_line(error))
    console.print(summary(sections), highlight=False)
    console.print(f"report: {folder / 'report.html'} (also report.md and figures)", highlight=False, soft_wrap=True)
    return folder


def _beside(places: Sequence[Place]) -> Path:
    folder = places[0].folder if len(places) == 1 else None
    return (folder or Path.cwd()) / "report"


def _slug(name: str, taken: Sequence[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"
    found, count = plain, 2
    while found in taken:
        found, count = f"{plain}-{count}", count + 1
    return found


def _write(folder: Path, sections: Sequence[Section]) -> None:
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
