"""A local MLflow store whose folder was moved, copied or mounted elsewhere: its database holds absolute addresses."""

import contextlib
import logging
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"  # beside the database
_ADDRESSES = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def follow_move(file: Path) -> None:
    """Let the database name the artifacts that are beside it, instead of those beside the place that it was made in.

    A place that was chosen otherwise stays: only addresses in a folder `mlartifacts` change, if it is gone or if its
    runs' folders are beside the database now.
    """
    here = (file.parent / ARTIFACTS).as_uri()
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:  # a new one
            return
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for old in (address for (address,) in found if address and address != here):
            if not old.startswith("file:") or not old.endswith(f"/{ARTIFACTS}"):
                continue
            runs = connection.execute("SELECT run_uuid FROM runs WHERE artifact_uri LIKE ? || '/%'", (old,)).fetchall()
            came_along = any((file.parent / ARTIFACTS / run_id).is_dir() for (run_id,) in runs)
            if not came_along and Path(unquote(urlsplit(old).path)).exists():
                continue
            log.warning("%s was moved: MLflow's artifacts are read from %s, no longer from %s", file, here, old)
            for table, column in _ADDRESSES:
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )


def holds(file: Path, run_id: str) -> bool:
    """Whether a database is MLflow's and has this run. Not changed, and not made if it does not exist."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
