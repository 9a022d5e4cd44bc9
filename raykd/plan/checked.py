"""Checks that passed are remembered in the store, because some take seconds."""

from collections.abc import Callable, Sequence
from pathlib import Path

from raykd.common.hashing import fingerprint


def check_once(store: Path, identity: Sequence[object], check: Callable[[], bool | None]) -> None:
    """Call `check`, which raises if something is wrong, unless it has passed before.

    identity: JSON-able, everything that its outcome depends on, versions of libraries included.
    check: returns False if it could not be made, so that it is tried again the next time.
    """
    passed = store / "checked" / fingerprint(identity)
    if passed.exists():
        return
    if check() is False:
        return
    passed.parent.mkdir(exist_ok=True)
    passed.touch()
