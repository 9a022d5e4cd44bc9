"""Warnings of a training's process as events, because nobody reads a worker's own log."""

import contextlib
import logging
from collections.abc import Iterator

from raykd.training.events import Event, Warned


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def take(self) -> Iterator[Event]:
        while self.texts:
            yield Warned(self.texts.pop(0))


def with_warnings(events: Iterator[Event]) -> Iterator[Event]:
    """The events, and before each of them a `Warned` for every warning that raykd has logged since the last one."""
    kept = _Kept()
    logger = logging.getLogger("raykd")
    logger.addHandler(kept)
    try:
        with contextlib.closing(events):  # type: ignore[type-var]  # a generator, which is to end when this one does
            for event in events:
                yield from kept.take()
                yield event
        yield from kept.take()
    finally:
        logger.removeHandler(kept)
