"""Error messages about models."""

from raykd.common.errors import ConfigError, HubError
from raykd.config.schema import ModelConfig


def short_reason(error: Exception) -> str:
    """The line of transformers' long message that has the reason: the second line for an error in a field."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if isinstance(error, (ValueError, OSError)):
        return line[:160].rstrip(". ")
    return f"{type(error).__name__}: {line[:160]}"


def not_a_model(spec: ModelConfig, key: str, error: Exception) -> ConfigError:
    """transformers cannot make a model of this config."""
    where = f"{key}.config" if spec.config else key
    value = spec.config or spec.pretrained
    return ConfigError(where, value, f"it is not a valid config ({short_reason(error)})", "Fix that value")


def hub_unreachable(key: str, name: str) -> HubError:
    hint = "Give a local folder, or run where the hub is reachable"
    return HubError(key, name, "it is not a local folder, and the hub cannot be reached", hint)
