"""`raykd report`: a page, made from MLflow alone, that answers whether the student beats its teachers."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from raykd.common.atomic import write_atomically
from raykd.common.errors import ConfigError
from raykd.common.output_files import PAGE, REPORT
from raykd.reports.analysis import Analysis, analyze
from raykd.reports.figure_cache import KeptImages, image_file
from raykd.reports.leaderboard_csv import leaderboard_csv
from raykd.reports.locate import Place, find_run, open_store, place_of
from raykd.reports.page import ReportSection, html, markdown, summary
from raykd.reports.parallel_figure import parallel
from raykd.reports.read import read
from raykd.reports.result_figures import calibration, learning_curves, mistakes
from raykd.reports.search_figures import alpha_temperature, w_curve
from raykd.reports.serving_cost import score_latency
from raykd.tracking.mlflow_store import one_line
from raykd.tracking.moved import is_elsewhere

FIGURES = (w_curve, alpha_temperature, learning_curves, score_latency, mistakes, calibration, parallel)

log = logging.getLogger(__name__)


def report(uri: str | None, runs: Sequence[str | Place], output: Path | None, console: Console) -> Path:
    """Write the report of one or several experiments; returns its folder.

    runs: ids of runs (or of their child runs), folders with a `results.json`, the YAML files of their jobs, or places.
    uri: address of the MLflow store; by default that in each run's `results.json`, otherwise as for a job.
    output: the folder; by default `report` in the folder of a single run's `results.json`, otherwise ./report.

    `write_report` says what is in it. Raises ConfigError.
    """
    if not runs:
        raise ConfigError("runs", "[]", "there is nothing to report on", "Name a run")
    places = [run if isinstance(run, Place) else place_of(run, uri) for run in runs]
    clients = {place.uri: open_store(place.uri) for place in places}
    analyses: dict[str, Analysis] = {}  # by the experiment's run
    for place in places:
        client = clients[place.uri]
        parent = find_run(client, place.uri, place.run_id)
        if parent.info.run_id not in analyses:
            analyses[parent.info.run_id] = analyze(read(client, place.uri, parent))
    experiments = [analysis.experiment for analysis in analyses.values()]
    names = Counter(experiment.name for experiment in experiments)
    for experiment in experiments:
        if names[experiment.name] > 1:
            experiment.name += f" ({experiment.id[:8]})"
    folder = output or _default_folder(places)
    sentence = write_report(list(analyses.values()), folder)
    console.print(sentence, highlight=False, soft_wrap=not console.is_terminal)  # words are broken on no terminal
    say_where(folder, console)
    return folder


def say_where(folder: Path, console: Console) -> None:
    console.print(
        f"report: {folder / 'report.html'} (also report.md, leaderboard.csv and figures)",
        highlight=False,
        soft_wrap=True,
    )


def write_report(analyses: Sequence[Analysis], folder: Path) -> str:
    """Write `report.html` (self-contained), `report.md`, `leaderboard.csv` and `figures/*.png`; returns the first line.

    The report of one experiment is logged to its run, too, as artifacts under `report/`; a comparison is in the folder
    alone. ConfigError if the folder cannot be written to.
    """
    sections: list[ReportSection] = []
    kept = KeptImages(folder / "figures")
    for analysis in analyses:
        slug = _slug(analysis.experiment.name, [s.slug for s in sections])
        figures = [figure(analysis) for figure in FIGURES]
        figures = [replace(f, images=kept.images(f"{slug}-{f.key}", f.drawing)) for f in figures]
        sections.append(ReportSection(slug, analysis, figures))
    written = _write(folder, sections, kept)
    for section in sections if len(sections) == 1 else ():
        experiment = section.analysis.experiment
        try:
            address = experiment.client.get_run(experiment.id).info.artifact_uri
            if is_elsewhere(experiment.uri, experiment.id, address):
                log.warning("the report is not in MLflow: a running command has the run's artifacts at %s", address)
                continue
            for file in written:  # the user's folder can hold other files, too
                place = Path(REPORT, file.relative_to(folder)).parent
                experiment.client.log_artifact(experiment.id, str(file), place.as_posix())
        except Exception as error:  # such as a server that this user may only read from
            log.warning("the report is not in MLflow (%s)", one_line(error))
    return summary(sections)


def _default_folder(places: Sequence[Place]) -> Path:
    folder = places[0].folder if len(places) == 1 else None
    return (folder or Path.cwd()) / REPORT


def _slug(name: str, taken: Sequence[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"
    slug, count = plain, 2
    while slug in taken:
        slug, count = f"{plain}-{count}", count + 1
    return slug


def _write(folder: Path, sections: Sequence[ReportSection], kept: KeptImages) -> list[Path]:
    """Returns the files of the report."""
    figures, page, text = folder / "figures", folder / PAGE, folder / "report.md"
    table = folder / "leaderboard.csv"
    images = {
        figures / image_file(f"{section.slug}-{figure.key}", theme): image
        for section in sections
        for figure in section.figures
        for theme, image in figure.images.items()
    }
    try:
        figures.mkdir(parents=True, exist_ok=True)
        for file, image in images.items():
            file.write_bytes(image)
        kept.write()
        write_atomically(page, html(sections).encode())
        write_atomically(text, markdown(sections).encode())
        write_atomically(table, leaderboard_csv([section.analysis for section in sections]).encode())
        return [page, text, table, *images]
    except OSError as error:
        reason = f"it cannot be written to ({error.strerror})"
        raise ConfigError("--output", folder, reason, "Name another folder") from None
