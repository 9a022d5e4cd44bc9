"""Repairs a local MLflow store whose folder was moved, since its database holds absolute addresses."""

import contextlib
import json
import logging
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from raykd.common.output_files import ARTIFACTS
from raykd.common.readers import is_locked

log = logging.getLogger(__name__)

_ADDRESSES = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def follow_move(file: Path) -> None:
    """Change the addresses of artifacts in the database from its old folder to its current one.

    Only addresses in a folder `mlartifacts` change, and only if that folder is gone, if the runs' folders are in the
    database's folder now, or if the database next to that folder has the same runs, so that this one is a copy of it,
    which must not write into the original's folder. Other places for artifacts were chosen by the user and stay.

    Nothing changes while a command runs that sees this folder at another place, such as in a container: its addresses
    have to stay right there.
    """
    here = (file.parent / ARTIFACTS).as_uri()
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:  # a new one
            return
        locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for old in (address for (address,) in locations if address and address != here):
            if not old.startswith("file:") or not old.endswith(f"/{ARTIFACTS}"):
                continue
            runs = connection.execute("SELECT run_uuid FROM runs WHERE artifact_uri LIKE ? || '/%'", (old,)).fetchall()
            moved_along = any((file.parent / ARTIFACTS / run_id).is_dir() for (run_id,) in runs)
            folder = Path(unquote(urlsplit(old).path))
            copied = (original := folder.with_name(file.name)).exists() and (
                not runs or any(holds(original, run_id) for (run_id,) in runs)
            )
            if not moved_along and not copied and folder.exists():
                continue
            if name := _running(file.parent):
                log.warning(
                    "%s has moved, but a command of %s still has it elsewhere: artifacts stay at %s", file, name, old
                )
                return
            log.warning("%s was moved: MLflow's artifacts are now read from %s instead of %s", file, here, old)
            for table, column in _ADDRESSES:
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )


def local_artifacts(uri: str, run_id: str, address: str) -> Path | None:
    """The folder of a run's artifacts on this machine; None if they are elsewhere.

    uri: of the MLflow store.
    address: of the artifacts, as MLflow has it. It can be in the folder that the store has been moved from
        (`follow_move`).
    """
    parts = urlsplit(address)
    if parts.scheme != "file" or parts.netloc:
        return None
    folder = Path(unquote(parts.path))
    if not folder.exists() and uri.startswith("sqlite:"):
        database = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
        beside = database.with_name(ARTIFACTS) / run_id / folder.name
        return beside if beside.exists() else folder
    return folder


def is_elsewhere(uri: str, run_id: str, address: str) -> bool:
    """Whether MLflow would write a run's artifacts into the store's old folder. Arguments as in `local_artifacts`."""
    place = local_artifacts(uri, run_id, address)
    return place is not None and place != Path(unquote(urlsplit(address).path))


def _running(output: Path) -> str:
    """The experiment of a running command that sees this folder at another place; "" if there is none."""
    for lock in output.glob("*/.lock"):
        if is_locked(lock):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not written yet
                holder = json.loads(lock.with_name(".lock.json").read_text())
                if holder["folder"] == str(lock.parent.absolute()):
                    continue
            return lock.parent.name
    return ""


def holds(file: Path, run_id: str) -> bool:
    """Whether an MLflow database has this run. The file is neither changed nor created."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
