"""Data sets that a function of the user's own returns: `data.source: my_module:load`."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache

from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.own_code import read_code
from raykd.common.own_objects import failure, handled_elsewhere, imported

_RETURNS = "Return a datasets.Dataset, or a dict of them by the split's name"


@cache  # one call serves all splits of a command, which clears this first
def own_data(source: str) -> dict[str, Dataset]:
    """The splits that the function returns; a single Dataset is called train.

    It runs in the command's own process only. Its rows are identified by their content and reach the workers through
    the store, so neither the function's name nor its code is part of any fingerprint.
    """
    with suppress(ConfigError):  # a function of a script or of a compiled module is taken as it is
        read_code({"data.source": source}).install()  # as it is now, if an earlier command has loaded it
    load = imported(source, "data.source")
    try:
        found = load()
    except Exception as error:  # it is the user's code
        if handled_elsewhere(error):
            raise
        reason = f"it failed ({failure(error, source)})"
        raise ConfigError("data.source", source, reason, "Call it without arguments in Python to see where") from error
    if isinstance(found, Dataset):
        return {"train": found}
    if isinstance(found, Mapping) and found and all(isinstance(rows, Dataset) for rows in found.values()):
        return {str(name): rows for name, rows in found.items()}
    raise ConfigError("data.source", source, f"it returned a {type(found).__name__}", _RETURNS)
