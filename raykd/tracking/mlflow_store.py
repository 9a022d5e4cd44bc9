"""The address of the MLflow store, and a client for it. Imports mlflow only in `connect`."""

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
from http.client import HTTPException
from pathlib import Path
from posixpath import commonpath
from typing import Any
from urllib.parse import unquote, urlsplit

from raykd.common.errors import ConfigError, UserError
from raykd.common.locks import held
from raykd.common.output_files import ARTIFACTS, DATABASE
from raykd.common.redaction import scrub
from raykd.tracking.moved import follow_move

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PAGE = 1000
_LOCK_SECONDS = 120.0  # longest wait for another process that creates or upgrades the database
_STOPS = (signal.SIGINT, signal.SIGTERM)


def safe_name(text: str) -> str:
    """A name that MLflow accepts for a parameter, tag or metric: no special characters, no empty part of a path."""
    parts = [re.sub(r"[^\w.\-: ]", "_", part) for part in text.split("/") if part.strip(". ")]
    return "/".join(parts)[:250].rstrip("/") or "_"


def metric_name(text: str, taken: Collection[str], seen: Iterable[str]) -> str:
    """A metric's name that is not in `taken` and is no prefix of another's path, as "loss" is of "loss/train"."""
    name = safe_name(text)
    while name in taken or any(commonpath((name, other)) in (name, other) for other in seen if other != name):
        name = name.replace("/", ".") if "/" in name else f"{name}_"
    return name


def one_line(error: BaseException) -> str:
    """An error in one line. Ray wraps an error with its traceback and keeps the original as `cause`."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(scrub(text).split()).removesuffix(":")[:500]


def runs_page(experiment_id: str) -> str:
    """The page of MLflow's server that lists the runs; without these options it shows traces."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def local_uri(output: Path) -> str:
    """The address of the sqlite file in `output`. SQLAlchemy reads % as an escape and ? as the start of options."""
    return "sqlite:///" + os.path.abspath(output / DATABASE).replace("%", "%25").replace("?", "%3F")


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
        reason = "a relative path is in a submitted job's working folder, which is temporary"
        raise ConfigError(key, uri, reason, f"Use an absolute path, as in {default}")
    secret = re.search("[@?#]", rest)  # not parsed, because a password can contain any character
    shown = uri if not secret else f"{scheme}://***" if rest.startswith("//") else "***"
    if scheme == "file" or not rest:
        reason = "MLflow no longer writes to plain folders"
        raise ConfigError(key, shown, reason, f"Use a database, as in {default}, or a server: http://HOST:PORT")
    if scheme not in ("http", "https"):
        reason = "only a sqlite file or an MLflow server's address can be used"
        raise ConfigError(key, shown, reason, "For another database, start a server on it: http://HOST:PORT")
    if secret:
        reason = "credentials or a query in the address would appear in logs"
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
    """A run's child runs in MLflow."""
    return search(client, experiment_id, f"tags.`mlflow.parentRunId` = '{parent_id}'")


def search(client: Any, experiment_id: str, wanted: str) -> Iterator[Any]:
    """The runs of an experiment that match a filter and are not deleted, newest first, read page by page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], wanted, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _signals_later() -> Iterator[None]:
    """Delay signals until the block ends: an exception in the middle of a transaction can leave the file locked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {kind: signal.signal(kind, lambda number, frame: received.append(number)) for kind in _STOPS}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in received:
            signal.raise_signal(number)


class _OneAtATime:
    """A client for one thread at a time.

    sqlite has one writer, and with 24 threads waiting for each other, MLflow's pool of 15 connections was exhausted, so
    that after 30 s a run could not be created.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._lock = client, threading.RLock()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **settings: Any) -> Any:
            with self._lock, _signals_later():
                return method(*args, **settings)

        return call if callable(method) else method


def connect(uri: str) -> tuple[Any, str | None]:
    """A client for a store that is ready to be written to, and the address for artifacts.

    With a sqlite file, artifacts are in the folder of the file. A server has its own place, so the address is None.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # "Creating tables ...", and a traceback for every error, which is also raised.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith("sqlite:"):
        hint = "Check the address, and whether the server is running"
        try:  # MLflow itself would try for 4 minutes; any answer is fine here
            urllib.request.urlopen(f"{uri}/health", timeout=10).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, HTTPException) as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # MLflow has its own settings
                raise ConfigError("tracking.uri", uri, f"no answer over HTTP ({one_line(error)})", hint) from None
        return MlflowClient(tracking_uri=uri), None
    file = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Processes that create a store at the same time crash in its migrations and can leave it unusable.
        with held(Path(f"{file}.lock"), "open MLflow's database", _LOCK_SECONDS):
            # MLflow tries for 100 s to open a file that cannot be opened, so check it first.
            with sqlite3.connect(file, timeout=60) as connection:
                connection.execute("BEGIN IMMEDIATE")
            connection.close()
            follow_move(file)
            return _OneAtATime(MlflowClient(tracking_uri=uri)), (file.parent / ARTIFACTS).as_uri()
    except Exception as error:
        hint = "Name another file in a folder that can be written to"
        raise ConfigError("tracking.uri", uri, f"cannot be opened ({one_line(error)})", hint) from None
