"""A flag that processes on any node see: a file in the shared store. For what must also reach a busy training."""

import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4


class Flag:
    """Up or down. Of one command alone: each has its own, so what a killed one left behind means nothing."""

    def __init__(self, store: Path, name: str, every: float = 1.0) -> None:
        """every: seconds between two looks at the file; between them the last answer stands."""
        self.path = store / "flags" / f"{name}-{uuid4().hex}"
        self.every, self._looked, self._up = every, float("-inf"), False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= self.every:
            self._looked, self._up = now, self.path.exists()
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
    """Up if one of them is."""

    flags: tuple[Flag, ...]

    def __call__(self) -> bool:
        return any(flag() for flag in self.flags)


def _restored(path: Path, every: float) -> Flag:
    """In another process: monotonic clocks differ between machines, so it looks afresh."""
    flag = Flag.__new__(Flag)
    flag.path, flag.every, flag._looked, flag._up = path, every, float("-inf"), False
    return flag
