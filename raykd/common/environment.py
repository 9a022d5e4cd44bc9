"""The environment, in one place. Ray reads its part when it is imported: call `set_environment` before.

A submitted job and its `ray.init` share what the cluster and `--runtime-env-json` give: raykd hands Ray no
environment of its own, so the two cannot clash.
"""

import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else a distributed report waits 1.8 s
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep's results are in MLflow and its journal
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before its first score
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is not needed to resume a sweep
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # else processes start one after the other, 10 s each
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a sweep has its own
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's banner, whatever its verbosity
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray gives to the command of a submitted job


def set_environment() -> None:
    """No telemetry, no chatter, no open Ray; what the user has set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:  # a cluster that runs has chosen for itself
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # other users of a machine may not submit work to its Ray


def home() -> str:
    """The folder that a relative `output` is in: RAYKD_HOME, else the current one.

    A submitted job's current folder is an unpacked package that Ray deletes: there it is `~/raykd`.
    """
    return os.environ.get("RAYKD_HOME") or (os.path.expanduser("~/raykd") if _IN_A_JOB in os.environ else os.getcwd())
