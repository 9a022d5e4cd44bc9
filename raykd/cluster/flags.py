"""A flag for processes on all nodes: a file in the shared store. A training can check it without receiving a call."""

import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from raykd.common.shared_files import list_anew


class Flag:
    """Up or down. Each command has its own flags, so files that a killed command left behind have no effect."""

    def __init__(self, store: Path, name: str, every: float = 1.0) -> None:
        """store: the folder `output/store`.
        name: for the file.
        every: shortest time between two checks of the file, in seconds; in between, the last result is used.
        """
        self.path = store / "flags" / f"{name}-{uuid4().hex}"
        self.every, self._checked, self._up = every, float("-inf"), False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._checked >= self.every:
            list_anew(self.path.parent)
            self._checked, self._up = now, self.path.exists()
        return self._up

    def up(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def down(self) -> None:
        self.path.unlink(missing_ok=True)

    def __reduce__(self) -> tuple:
        return _restored, (self.path, self.every)


@dataclass(frozen=True)
class AnyFlag:
    """Up if at least one of the flags is."""

    flags: tuple[Flag, ...]

    def __call__(self) -> bool:
        return any(flag() for flag in self.flags)


def _restored(path: Path, every: float) -> Flag:
    """A flag in another process. It checks the file anew, because monotonic clocks differ between machines."""
    flag = Flag.__new__(Flag)
    flag.path, flag.every, flag._checked, flag._up = path, every, float("-inf"), False
    return flag
