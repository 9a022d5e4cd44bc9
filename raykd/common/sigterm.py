"""SIGTERM ends a command by an exception, one that cannot get lost."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # the exit code
AGAIN_SECONDS = 1.0
_pools = 0  # for which `ended_at_once` is in effect


@contextmanager
def raised_sigterm() -> Iterator[Callable[[], bool]]:
    """Raise SystemExit(TERMINATED) on SIGTERM, so that every cleanup on the way out runs. For the main thread.

    Yields a function that says whether there was a SIGTERM, to be called when the exception arrives: Ray replaces it
    by SystemExit(1) if the main thread was waiting in Ray's C++.

    The exception can get lost: some libraries catch every error while they are imported, and Python only prints one
    that arises in a finalizer. Therefore it is raised again every second, until it is on its way. Then a further
    SIGTERM has no effect, because `timeout` sends two, and the first one's cleanup must end.
    """
    received, arrived = False, False

    def on_sigterm(number: int, frame: Any) -> None:
        nonlocal received
        received = True
        if not arrived and not _on_its_way():
            signal.signal(signal.SIGALRM, again)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
            raise SystemExit(TERMINATED)

    def again(number: int, frame: Any) -> None:
        if arrived or _on_its_way():
            return
        if signal.getsignal(signal.SIGTERM) is not on_sigterm:  # a sweep's, which does not raise it
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.raise_signal(signal.SIGTERM)

    def was_received() -> bool:
        nonlocal arrived
        arrived = received
        return received

    before = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield was_received
    finally:
        if received:
            arrived = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Processes that are forked inside end at once on SIGTERM, whatever its handler does in this one.

    `multiprocessing.Pool` sends it to its processes when an error ends the pool, and waits until they have ended. They
    inherit the handler, and one in Python does not run if the signal arrives just before the process waits for a lock:
    both would wait forever.
    """
    global _pools
    _pools += 1
    try:
        yield
    finally:
        _pools -= 1


def _in_child() -> None:
    if _pools:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)


def _on_its_way() -> bool:
    """Whether the code that a signal interrupts is the cleanup of a command that is being stopped."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return True
        error = error.__context__
    return False
