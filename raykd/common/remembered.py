"""Remembers small results in the store, by everything that they depend on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raykd.common.atomic import write_atomically
from raykd.common.hashing import fingerprint


def remembered(store: Path, kind: str, identity: Sequence[object], compute: Callable[[], Any]) -> Any:
    """The result of `compute`, from the store if an earlier command has left it there.

    store: the folder `output/store`.
    kind: begins the file's name.
    identity: everything that the result depends on, including versions of libraries; JSON-serialisable.
    compute: returns a JSON-serialisable value.
    """
    path = store / "checked" / f"{kind}-{fingerprint(identity)}.json"
    if path.exists():
        try:
            return json.loads(path.read_text())
        except ValueError:
            pass  # damaged: computed and written again
    value = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value).encode())
    return value
