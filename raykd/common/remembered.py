"""Remembers small results in the store, by everything that they depend on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raykd.common.atomic import write_first
from raykd.common.hashing import fingerprint
from raykd.common.output_files import CHECKED


def remembered(store: Path, kind: str, identity: Sequence[object], compute: Callable[[], Any]) -> Any:
    """The result of `compute`, from the store if another process has left it there, also while this one computed.

    So processes that time something at the same moment all use one result.

    store: the folder `output/store`.
    kind: begins the file's name.
    identity: everything that the result depends on, including versions of libraries; JSON-serialisable.
    compute: returns a JSON-serialisable value.
    """
    path = store / CHECKED / f"{kind}-{fingerprint(identity)}.json"
    if found := _read(path):
        return found[0]
    content = json.dumps(compute()).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        if write_first(path, content):
            break
        if found := _read(path):
            return found[0]
        path.unlink(missing_ok=True)  # damaged
    return json.loads(content)


def _read(path: Path) -> list[Any]:
    """The value in a file, in a list; an empty list if there is none or it is damaged."""
    try:
        return [json.loads(path.read_text())]
    except (FileNotFoundError, ValueError):
        return []
