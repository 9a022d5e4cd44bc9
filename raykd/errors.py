"""The errors that raykd raises, for code that catches them."""

from raykd.common.errors import (
    ConfigError,
    DiskFullError,
    HubError,
    OwnCodeError,
    StoreError,
    TrackingError,
    TrainingError,
    UserError,
)

__all__ = [
    "ConfigError",
    "DiskFullError",
    "HubError",
    "OwnCodeError",
    "StoreError",
    "TrackingError",
    "TrainingError",
    "UserError",
]
