"""A real PostgreSQL of Debian's package, for the time of a test."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path:
    """Where Debian puts them. Skips where there are none, fails in CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        reason = "no PostgreSQL here (Debian: apt-get install postgresql)"
        assert "CI" not in os.environ, reason
        pytest.skip(reason)
    return found[-1].parent


@contextmanager
def postgres() -> Iterator[str]:
    """SQLAlchemy's address of an empty database, on a socket of its own. It refuses to run as root."""
    found = programs()
    folder = Path(tempfile.mkdtemp(prefix="raykd-postgres-"))  # pytest's folders are closed to other users
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_user, str(found / "pg_ctl"), "-D", str(folder / "data"), "-l", str(folder / "log"), "-w"]
    initialise = [*as_user, str(found / "initdb"), "-D", str(folder / "data"), "-U", "mlflow", "--auth", "trust"]
    try:
        subprocess.run(initialise, check=True, capture_output=True, cwd=folder)
        subprocess.run([*control, "-o", settings, "start"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    finally:
        shutil.rmtree(folder)
