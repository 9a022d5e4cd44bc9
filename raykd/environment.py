"""The environment, in one place. Ray reads its part when it is imported: call this before."""

import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # other users of a machine may not submit work to its Ray
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else a distributed report waits 1.8 s
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def set_environment() -> None:
    """No telemetry, no chatter, no open Ray; what the user has set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
