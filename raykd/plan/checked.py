"""Remembers in the store which checks have passed, because some take seconds."""

from collections.abc import Callable, Sequence
from pathlib import Path

from raykd.common.hashing import fingerprint
from raykd.common.output_files import CHECKED


def check_once(store: Path, identity: Sequence[object], check: Callable[[], bool | None]) -> None:
    """Call `check` unless it has passed before.

    identity: everything that its outcome depends on, including versions of libraries; JSON-serialisable.
    check: raises if something is wrong, and returns False if it could not be done, so that it is repeated next time.
    """
    passed = store / CHECKED / fingerprint(identity)
    if passed.exists():
        return
    if check() is False:
        return
    passed.parent.mkdir(exist_ok=True)
    passed.touch()
