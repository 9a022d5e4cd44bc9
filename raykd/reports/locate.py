"""Finds the MLflow run that a user names on the command line."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from raykd.common.environment import home
from raykd.common.errors import ConfigError
from raykd.common.output_files import DATABASE, RESULTS
from raykd.common.redaction import redact
from raykd.config.load import load
from raykd.tracking.mlflow_store import connect, local_uri, one_line, tracking_uri
from raykd.tracking.moved import holds
from raykd.tracking.tags import Tag

_CREDENTIALS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH")  # that MLflow sends


@dataclass(frozen=True)
class Place:
    """A run in a store.

    uri: of the MLflow store.
    folder: of its `results.json`; None if the user named the run by its id.
    """

    uri: str
    run_id: str
    folder: Path | None


def place_of(run: str, uri: str | None) -> Place:
    """Find a run.

    run: a run's id, the folder of a `results.json`, that file, or the YAML of the job that wrote it.
    uri: address of the MLflow store. Without it, `results.json` has the address, and an id is looked up in the store
        that a job without `output` would use (`raykd.tracking.mlflow_store.tracking_uri`).
    """
    path = Path(run)
    if re.fullmatch("[0-9a-f]{32}", run) and not path.exists():
        return Place(tracking_uri(uri, Path(home(), "runs")), run, None)
    file, trusted = path, {os.environ.get("MLFLOW_TRACKING_URI")}
    if path.suffix in (".yaml", ".yml"):
        config = load(path)
        file = config.folder / RESULTS
        trusted.add(config.tracking.uri)
    elif path.is_dir():
        file = path / RESULTS
    if not file.is_file():
        reason = "there is no such file or folder" if file == path else f"there is no {file}"
        raise ConfigError("RUN", run, reason, "Name a run's id in MLflow, or the folder of a finished run: runs/digits")
    try:
        mlflow = json.loads(file.read_text())["mlflow"]
        place = tracking_uri(uri or _where_now(mlflow["uri"], mlflow["run_id"], file.parent), file.parent)
        if not uri and place not in {(known or "").strip().rstrip("/") for known in trusted}:
            _check_trusted(place, file)
        return Place(place, mlflow["run_id"], file.parent)
    except (ValueError, KeyError, TypeError):
        hint = "Name a run's id in MLflow, or run the job again"
        raise ConfigError("RUN", run, f"{file} does not name its MLflow run", hint) from None


def _check_trusted(uri: str, file: Path) -> None:
    """Raise ConfigError if the user's credentials would be sent to a server that somebody else's file names."""
    credentials = [name for name in _CREDENTIALS if os.environ.get(name)]
    if (saved := Path.home() / ".mlflow" / "credentials").is_file():
        credentials.append(str(saved))
    if credentials and file.stat().st_uid != os.getuid() and not uri.startswith("sqlite:"):
        reason = f"another user's {file} names this server, which would get what {' and '.join(credentials)} says"
        raise ConfigError("--uri", uri, reason, f"Give --uri {uri} if you trust it")


def _where_now(uri: str, run_id: str, folder: Path) -> str:
    """The address in a `results.json`; if the folder was moved or copied, that of the database in its new place."""
    output = folder.resolve().parent
    moved = uri.startswith("sqlite:") and uri != local_uri(output) and holds(output / DATABASE, run_id)
    return local_uri(output) if moved else uri


def open_store(uri: str) -> Any:
    """An MLflow client for an existing store; a report must not create an empty database."""
    if uri.startswith("sqlite:"):
        file = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
        if not Path(file).is_file():
            hint = "Give --uri, or set MLFLOW_TRACKING_URI, or name the run's folder"
            raise ConfigError("--uri", uri, "there is no such database", hint)
    return connect(uri)[0]


def find_run(client: Any, uri: str, run_id: str) -> Any:
    """The experiment's run (MLflow's entity): the run itself, or its parent if it is a child run."""
    try:
        run = client.get_run(run_id)
        if parent := run.data.tags.get("mlflow.parentRunId"):
            run = client.get_run(parent)
    except Exception as error:
        reason = f"MLflow at {redact(uri)} did not return it ({one_line(error)[:120]})"
        raise ConfigError("RUN", run_id, reason, "Check the id, or give --uri") from None
    if run.data.tags.get(Tag.ROLE) != "experiment":
        raise ConfigError("RUN", run_id, "it is not a run of raykd", "Name a run of raykd sweep, distill or teach")
    return run
