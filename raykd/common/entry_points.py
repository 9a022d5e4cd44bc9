"""Entry points of installed packages, which a job names by one word instead of by `module:name`."""

import sys
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TypeVar

from raykd.common.dotted import is_dotted
from raykd.common.errors import ConfigError

GROUPS = {
    "task.type": "raykd.tasks",
    "method.weighting": "raykd.weightings",
    "method.divergence": "raykd.divergences",
    "data.source": "raykd.datasets",
}  # the group in a package's metadata, by the config's key
Value = TypeVar("Value")


def installed(key: str) -> dict[str, str]:
    """The packages that declare objects for this key, by the object's name."""
    return {name: " and ".join(sorted(set(found.values()))) for name, found in _declared(key).items()}


def own_path(key: str, value: Value, builtin: tuple[str, ...] = ()) -> Value | str:
    """`module:name` of the object, if the value is the name of an entry point. Any other value is returned unchanged.

    builtin: the names of raykd's own.

    Raises ConfigError if the name is also one of raykd's own, or if two packages declare it.
    """
    if not isinstance(value, str) or is_dotted(value):
        return value
    if value not in _declared(key) and value not in builtin:
        _by_group.cache_clear()  # in a notebook, a package can be newer than the last look
    if not (found := _declared(key).get(value)):
        return value
    path, package = next(iter(found.items()))
    if value in builtin:
        reason = f"it is one of raykd's own, and also an entry point of the installed package {package} ({path})"
        raise ConfigError(key, value, reason, f"Name the package's as {path}, or uninstall the package")
    if len(found) > 1:
        both = ", ".join(f"{package} ({path})" for path, package in sorted(found.items()))
        hint = f"Name the one that you mean by its path, such as {path}"
        raise ConfigError(key, value, f"several installed packages declare it: {both}", hint)
    if not is_dotted(path):
        reason = f"the entry point of the installed package {package} is {path}, which is not module:name"
        raise ConfigError(key, value, reason, "Correct it in the package's pyproject.toml, and install it again")
    return path


def is_declared(key: str, path: str) -> bool:
    """Whether an installed package declares this `module:name`."""
    return any(path in found for found in _declared(key).values())


def _declared(key: str) -> dict[str, dict[str, str]]:
    """The package by `module:name`, by the entry point's name."""
    return _by_group(tuple(sys.path)).get(GROUPS[key], {})


@lru_cache(maxsize=1)  # reading every installed package's metadata takes some 20 ms
def _by_group(path: tuple[str, ...]) -> dict[str, dict[str, dict[str, str]]]:
    """path: sys.path, on which the answer depends."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    declared = entry_points()
    for group in GROUPS.values():
        for point in declared.select(group=group):
            place = f"{point.module}:{point.attr}" if point.attr else point.module
            package = point.dist.name if point.dist else "?"
            found.setdefault(group, {}).setdefault(point.name, {})[place] = package
    return found
