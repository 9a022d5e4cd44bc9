"""Where an experiment comes from: its date, data, models and command, and its pages in MLflow."""

from collections import Counter
from datetime import UTC, datetime

from raykd.reports.read import Experiment
from raykd.tracking.mlflow_store import runs_page


def origin(experiment: Experiment) -> list[tuple[str, str]]:
    """What can be said of date, data, models and command, each with its name."""
    teachers = experiment.of("teacher")
    students = {run.params.get("model", "") for run in experiment.of("student", "baseline")} - {""}
    of_teachers = Counter(t.params.get("model") or "given" for t in teachers)
    taught_by = ", ".join(f"{count} × {model}" for model, count in of_teachers.items())
    began = datetime.fromtimestamp(experiment.started / 1000, UTC) if experiment.started else None
    items = [
        ("date:", f"{began:%Y-%m-%d %H:%M} UTC" if began else ""),
        ("data:", experiment.params.get("data", "")),
        ("student:", ", ".join(sorted(students))),
        ("teachers:", taught_by),
        ("command:", experiment.source or (f"raykd {experiment.command}" if experiment.command else "")),
        ("which continued:", "; ".join(experiment.earlier)),
        ("by", "; ".join(experiment.versions.splitlines()) or (experiment.version and f"raykd {experiment.version}")),
    ]
    return [(name, value) for name, value in items if value]


def mlflow_pages(experiment: Experiment) -> dict[str, str]:
    """Addresses of the experiment's run and of the list of runs, "" if unknown, and the command that serves them."""
    pages = {"run": "", "runs": "", "command": ""}
    if not experiment.experiment_id:
        return pages
    server, command = experiment.uri.rstrip("/"), ""
    if experiment.uri.startswith("sqlite:"):
        server, command = "http://127.0.0.1:5000", f"mlflow ui --backend-store-uri {experiment.uri} --port 5000"
    if server.startswith("http"):
        run = f"{server}/#/experiments/{experiment.experiment_id}/runs/{experiment.id}"
        pages = {"run": run, "runs": f"{server}/{runs_page(experiment.experiment_id)}", "command": command}
    return pages
