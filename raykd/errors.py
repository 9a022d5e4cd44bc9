"""The errors that raykd raises, for code that catches them."""

from raykd.common.errors import ConfigError, HubError, OwnCodeError, StoreError, TrainingError, UserError

__all__ = ["ConfigError", "HubError", "OwnCodeError", "StoreError", "TrainingError", "UserError"]
