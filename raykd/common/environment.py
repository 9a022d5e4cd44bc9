"""The environment variables that raykd sets for itself and for Ray.

Ray reads its own on import, so call `set_environment` first.

A submitted job and its `ray.init` both get their environment from the cluster and `--runtime-env-json`. raykd passes no
runtime environment to Ray, so the two cannot conflict.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from raykd.common.importing import collect_as_usual

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # by default a distributed report takes 1.8 s
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep's results are in MLflow and its journal
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial can fail before its first score
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is not needed to resume a sweep
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # by default processes start one after another, 10 s each
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a trial that fails has a line of raykd's own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a sweep has its own handler
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune prints its banner at any verbosity otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_FOR_RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE")
_OFFLINE, _HUB_MODULES = "HF_HUB_OFFLINE", ("huggingface_hub.constants", "datasets.config")
_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the command of a submitted job


def set_defaults() -> None:
    """Turn off telemetry and progress output. Keeps what the user has set. Call it before libraries are imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_environment() -> None:
    """The same, and require a token for a local Ray."""
    set_defaults()
    if os.environ.get("RAY_ADDRESS", "local") == "local":  # a running cluster has its own mode
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # keeps other users of the machine from submitting work


@contextmanager
def environment_for(address: str | None) -> Iterator[None]:
    """The environment of one command. Afterwards Ray's part is as before: the next command may be for another cluster.

    address: of the command's cluster; None: RAY_ADDRESS, or a local Ray.
    """
    before = {name: os.environ.get(name) for name in _FOR_RAY}
    if address:
        os.environ["RAY_ADDRESS"] = address
    set_environment()
    try:
        yield
    finally:
        for name, value in before.items():
            _set(name, value)


@contextmanager
def without_the_hub() -> Iterator[None]:
    """No requests to the hub. Its libraries read the variable only when they are imported, so theirs is set, too."""
    before, modules = os.environ.get(_OFFLINE), [import_module(name) for name in _HUB_MODULES]
    usual: list[Any] = [module.HF_HUB_OFFLINE for module in modules]
    os.environ[_OFFLINE] = "1"
    for module in modules:
        module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _set(_OFFLINE, before)
        for module, value in zip(modules, usual, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def begin_task() -> None:
    """Call this first in what runs in a Ray worker process. The modules that it needs are imported by then."""
    set_environment()
    collect_as_usual()


def home() -> str:
    """The folder to which a relative `output` is relative: RAYKD_HOME, else the current folder.

    In a submitted job it is `~/raykd`, because Ray deletes the job's current folder.
    """
    return os.path.expanduser(os.environ.get("RAYKD_HOME", "")) or (
        os.path.expanduser("~/raykd") if _IN_A_JOB in os.environ else os.getcwd()
    )
