"""Stops a sweep on Ctrl-C or SIGTERM so that it can be resumed."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raykd.cluster.flags import Flag
from raykd.common.sigterm import TERMINATED
from raykd.search.state import SweepState
from raykd.tracking.recorder import Recorder

STOP_SECONDS = 20.0  # time for trials to write a checkpoint


class StopSignal:
    """Which signal asked the sweep to stop; 0: none."""

    def __init__(self) -> None:
        self.signal, self.limit = 0, float("inf")

    def late(self) -> bool:
        """Whether to kill trials that have not written a checkpoint."""
        return time.monotonic() > self.limit

    def error(self) -> BaseException:
        """What ends the command, so that its exit code says which signal it was."""
        return SystemExit(TERMINATED) if self.signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def stopped_gently(state: SweepState, stop: Flag, recorder: Recorder) -> Iterator[StopSignal]:
    """On Ctrl-C or SIGTERM, trials write their checkpoints before they stop; a second signal stops them at once.

    A SIGTERM after another has no effect, because `timeout` sends two.
    """
    stopping = StopSignal()

    def on_signal(number: int, frame: Any) -> None:
        if number == stopping.signal == signal.SIGTERM:
            return
        if stopping.signal:
            raise KeyboardInterrupt  # not SystemExit, which Ray can replace by one with another code
        stopping.signal, stopping.limit = number, time.monotonic() + STOP_SECONDS
        state.over = "the sweep was asked to stop; its trials are writing their checkpoints"
        stop.up()
        recorder.stopping()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    except KeyboardInterrupt:
        raise stopping.error() from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.down()
