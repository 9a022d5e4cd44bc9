"""Objects of the user's own code, named as `module:name`."""

import importlib
import os
import re
import sys
from typing import Any

from raykd.common.errors import ConfigError

FORM = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def is_dotted(text: str) -> bool:
    """Whether a text has the form `package.module:name`."""
    return re.fullmatch(FORM, text) is not None


def here_on_path() -> None:
    """Let modules of the current folder be imported, as by `python -m`."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def imported(path: str, key: str) -> Any:
    """The object that `module:name` names. Modules of the current folder can be imported, as by `python -m`.

    key: the config's key, for errors. Raises ConfigError.
    """
    module, _, name = path.partition(":")
    here_on_path()
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module's own code can raise anything
        reason = f"the module {module} cannot be imported ({type(error).__name__}: {error})"
        raise ConfigError(key, path, reason, "Run the command in the module's folder, or install it") from error
    if not hasattr(found, name):
        hint = f"Name one of its functions, as {module}:NAME"
        raise ConfigError(key, path, f"{getattr(found, '__file__', module)} has no {name}", hint)
    return getattr(found, name)
