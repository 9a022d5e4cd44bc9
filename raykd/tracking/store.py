"""Where MLflow is, and a client on it. Imports mlflow only in `connect`."""

import logging
import os
import re
import signal
import sqlite3
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from posixpath import commonpath
from typing import Any
from urllib.parse import unquote, urlsplit

from raykd.common.errors import ConfigError, UserError
from raykd.common.locks import held
from raykd.common.redaction import scrub
from raykd.tracking.moved import ARTIFACTS, follow_move

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PAGE = 1000
_LOCK_SECONDS = 120.0  # longest wait for another process that creates or upgrades the database
_STOPS = (signal.SIGINT, signal.SIGTERM)


def safe_name(text: str) -> str:
    """A name that MLflow takes for a parameter, tag or metric: no odd characters, no empty part of a path."""
    parts = [re.sub(r"[^\w.\-: ]", "_", part) for part in text.split("/") if part.strip(". ")]
    return "/".join(parts)[:250].rstrip("/") or "_"


def metric_name(text: str, taken: Collection[str], seen: Iterable[str]) -> str:
    """A metric's name: none of `taken`, and no prefix of another's path, as "loss" is of "loss/train"."""
    name = safe_name(text)
    while name in taken or any(commonpath((name, other)) in (name, other) for other in seen if other != name):
        name = name.replace("/", ".") if "/" in name else f"{name}_"
    return name


def one_line(error: BaseException) -> str:
    """What a person reads first: Ray wraps an error in its traceback and keeps the error as `cause`."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(scrub(text).split()).removesuffix(":")[:500]


def local_uri(output: Path) -> str:
    """A sqlite file there. SQLAlchemy reads % as an escape and ? as the start of options."""
    return "sqlite:///" + os.path.abspath(output / "mlflow.db").replace("%", "%25").replace("?", "%3F")


def tracking_uri(configured: str | None, output: Path) -> str:
    """The configured URI, MLFLOW_TRACKING_URI, or an absolute sqlite path under the output folder."""
    key, uri = "tracking.uri", (configured or "").strip()
    if not uri:
        key, uri = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    default = local_uri(output)
    if not uri:
        return default
    scheme, _, rest = uri.partition(":")
    if scheme == "sqlite":
        if rest.startswith("////"):
            return uri
        reason = "a relative path lies in a submitted job's working folder, which is temporary"
        raise ConfigError(key, uri, reason, f"Use an absolute path, as in {default}")
    secret = re.search("[@?#]", rest)  # not parsed: a password may hold any character
    shown = uri if not secret else f"{scheme}://***" if rest.startswith("//") else "***"
    if scheme == "file" or not rest:
        reason = "MLflow no longer writes to plain folders"
        raise ConfigError(key, shown, reason, f"Use a database, as in {default}, or a server: http://HOST:PORT")
    if scheme not in ("http", "https"):
        reason = "only a sqlite file or an MLflow server's address can be used"
        raise ConfigError(key, shown, reason, "For another database, start a server on it: http://HOST:PORT")
    if secret:
        reason = "credentials or a query in the address would show up in logs"
        hint = "Give the bare address and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise ConfigError(key, shown, reason, hint)
    try:
        valid = rest.startswith("//") and urlsplit(uri).hostname and urlsplit(uri).port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(key, shown, "not an address", "Write it as http://HOST:PORT")
    return uri.rstrip("/")


def children(client: Any, experiment_id: str, parent_id: str) -> Iterator[Any]:
    """A run's child runs, as MLflow has them, page by page."""
    token = None
    while True:
        wanted = f"tags.`mlflow.parentRunId` = '{parent_id}'"
        page = client.search_runs([experiment_id], wanted, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _signals_later() -> Iterator[None]:
    """What a signal's handler raises in the middle of a transaction may leave the file locked: it waits for its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {kind: signal.signal(kind, lambda number, frame: came.append(number)) for kind in _STOPS}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in came:
            signal.raise_signal(number)


class _OneAtATime:
    """A client that many threads use in turn: sqlite has one writer, and 24 threads that wait for each other
    exhaust MLflow's pool of 15 connections: after 30 s a run could not be created."""

    def __init__(self, client: Any) -> None:
        self._client, self._lock = client, threading.RLock()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **settings: Any) -> Any:
            with self._lock, _signals_later():
                return method(*args, **settings)

        return call if callable(method) else method


def connect(uri: str) -> tuple[Any, str | None]:
    """A client on a store that is ready to be written to, and the place for artifacts that raykd chooses:
    beside a sqlite file; a server has a place of its own (None)."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # "Creating tables ...", and a traceback for every error, which is also raised.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith("sqlite:"):
        hint = "Check the address, and that the server runs"
        try:  # MLflow itself would try for 4 minutes; any answer will do here
            urllib.request.urlopen(f"{uri}/health", timeout=10).close()
        except urllib.error.HTTPError:
            pass
        except OSError as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # MLflow has its own settings
                raise ConfigError("tracking.uri", uri, f"no answer ({one_line(error)})", hint) from None
        return MlflowClient(tracking_uri=uri), None
    file = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Processes that create one store at once crash in its migrations and can leave it unusable.
        with held(Path(f"{file}.lock"), "open MLflow's database", _LOCK_SECONDS):
            # MLflow tries for 100 s to open a file that cannot be opened: find out first.
            with sqlite3.connect(file, timeout=60) as connection:
                connection.execute("BEGIN IMMEDIATE")
            connection.close()
            follow_move(file)
            return _OneAtATime(MlflowClient(tracking_uri=uri)), (file.parent / ARTIFACTS).as_uri()
    except Exception as error:
        hint = "Name another file in a folder that can be written to"
        raise ConfigError("tracking.uri", uri, f"cannot be opened ({one_line(error)})", hint) from None
