"""Error messages about models."""

import re

from raykd.common.errors import ConfigError, HubError
from raykd.config.schema import ModelConfig

_INSTALL = re.compile(r"pip install (?:-U |--upgrade )?([A-Za-z0-9][\w.\[\]-]*)")


def short_reason(error: Exception) -> str:
    """The line of transformers' long message that has the reason: the second line for an error in a field."""
    if package := lacking_package(error):
        return f"the package {package} is not installed"
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if isinstance(error, (ValueError, OSError)):
        return line[:160].rstrip(". ")
    return f"{type(error).__name__}: {line[:160]}"


def lacking_package(error: Exception) -> str | None:
    """The package that transformers says to install, as timm for a model of that library."""
    found = _INSTALL.search(str(error)) if isinstance(error, ImportError) else None
    return found[1].rstrip(".") if found else None


def not_a_model(spec: ModelConfig, key: str, error: Exception) -> ConfigError:
    """transformers cannot make a model of this config."""
    where = f"{key}.config" if spec.config else key
    value = spec.config or spec.pretrained
    if package := lacking_package(error):
        reason = f"this kind of model needs the package {package}, which is not installed"
        return ConfigError(where, value, reason, f"pip install {package}")
    return ConfigError(where, value, f"it is not a valid config ({short_reason(error)})", "Fix that value")


def hub_unreachable(key: str, name: str) -> HubError:
    hint = "Give a local folder, or run where the hub is reachable"
    return HubError(key, name, "it is not a local folder, and the hub cannot be reached", hint)
