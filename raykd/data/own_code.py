"""Data sets that a function of the user's own returns: `data.source: my_module:load`."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib import invalidate_caches
from importlib.util import cache_from_source
from pathlib import Path

from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.own_objects import failure, handled_elsewhere, imported

_RETURNS = "Return a datasets.Dataset, or a dict of them by the split's name"
_texts: dict[str, bytes] = {}  # of modules, when the function was imported from them; not of those imported by the user
_NOT_WHOLE = b"\0not whole"  # of a module whose import has failed: some of its parts may have been imported


@cache  # one call serves all splits, and all of a command's; `raykd.api` clears it where a command begins
def own_data(source: str) -> dict[str, Dataset]:
    """The splits that the function returns; a single Dataset is called train.

    It runs in the command's own process only. Its rows are identified by their content and reach the workers through
    the store, so neither the function's name nor its code is part of any fingerprint.
    """
    module = source.partition(":")[0]
    if module in _texts and _texts[module] != _text_of(module):
        _forget(module)
    if module not in sys.modules:
        _texts[module] = _NOT_WHOLE
    load = imported(source, "data.source")
    try:
        found = load()
    except Exception as error:  # it is the user's code
        if handled_elsewhere(error):
            raise
        reason = f"it failed ({failure(error, source)})"
        raise ConfigError("data.source", source, reason, "Call it without arguments in Python to see where") from error
    finally:  # it can have imported more parts of its package
        _texts[module] = _text_of(module)
    if isinstance(found, Dataset):
        return {"train": found}
    if isinstance(found, Mapping) and found and all(isinstance(rows, Dataset) for rows in found.values()):
        return {str(name): rows for name, rows in found.items()}
    raise ConfigError("data.source", source, f"it returned a {type(found).__name__}", _RETURNS)


def _forget(module: str) -> None:
    """Let a module be imported again that has changed since an earlier command of this process imported it."""
    for name in _with_parts(module):
        file = getattr(sys.modules.pop(name), "__file__", None) or ""
        if file.endswith(".py"):  # Python takes a file of the same second and size for the one that it has compiled
            Path(cache_from_source(file)).unlink(missing_ok=True)
    invalidate_caches()


def _text_of(module: str) -> bytes:
    """The source of an imported module and of its submodules; b"" if it is in no file of its own."""
    files = (Path(getattr(sys.modules[name], "__file__", None) or "") for name in _with_parts(module))
    return b"\0".join(file.read_bytes() for file in files if file.is_file())


def _with_parts(module: str) -> list[str]:
    """The names of an imported module and of its submodules."""
    return [name for name in sorted(sys.modules) if name == module or name.startswith(f"{module}.")]
