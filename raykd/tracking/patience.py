"""Waits for an MLflow server that stops answering in the middle of a command."""

import logging
import re
import time
from typing import Any

from raykd.tracking.mlflow_store import one_line

log = logging.getLogger(__name__)

WAIT_SECONDS = 3600.0  # longest wait for one answer; MLflow itself repeats a request for up to 4 minutes
PAUSE_SECONDS = 5.0


class Patient:
    """A client of a server that has answered before, so its address and its credentials are right.

    A server that is upgraded or restarted, or a network that is down for a while, should not end a sweep of many hours.
    Trainings continue while it waits, a sweep's trials up to their next evaluation.

    direct: the client without patience, for what can be sent later.
    """

    def __init__(self, direct: Any) -> None:
        self.direct = direct
        self._until: float | None = None  # when the patience with the present outage ends
        self._hurried = False

    def hurry(self) -> None:
        """Wait no more, because the command is ending. Safe to call in a signal handler."""
        self._hurried = True

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.direct, name)
        return (lambda *args, **settings: self._call(method, args, settings)) if callable(method) else method

    def _call(self, method: Any, args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """The method's result.

        Raises its error if the server has answered, does not after WAIT_SECONDS in all, or the command is ending.
        """
        while True:
            try:
                result = method(*args, **settings)
                break
            except Exception as error:
                if not _is_away(error):
                    raise
                if self._until is None:
                    self._until = time.monotonic() + WAIT_SECONDS
                    text = "MLflow does not answer; waiting for it for up to %.0f minutes (%s)"
                    log.warning(text, WAIT_SECONDS / 60, one_line(error))
                if self._hurried or time.monotonic() > self._until:
                    raise
            time.sleep(PAUSE_SECONDS)
        if self._until is not None:
            log.warning("MLflow answers again")
        self._until = None
        return result


def _is_away(error: BaseException | None) -> bool:
    """Whether a request got no answer, or only a proxy's that the server is away."""
    from requests import exceptions

    while error is not None:
        if isinstance(error, exceptions.SSLError):
            return False
        if isinstance(error, exceptions.ConnectionError | exceptions.Timeout):
            return True
        if isinstance(error, exceptions.RetryError):
            return re.search("too many 50[234] ", str(error)) is not None
        error = error.__cause__ or error.__context__
    return False
