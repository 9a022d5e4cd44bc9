"""Repairs a local MLflow store whose folder was moved, since its database holds absolute addresses."""

import contextlib
import logging
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"  # in the folder of the database
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
            log.warning("%s was moved: MLflow's artifacts are now read from %s instead of %s", file, here, old)
            for table, column in _ADDRESSES:
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )


def holds(file: Path, run_id: str) -> bool:
    """Whether an MLflow database has this run. The file is neither changed nor created."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
