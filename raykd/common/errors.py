"""Errors that a user can act on. Importable without torch or Ray."""

import errno
import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from raykd.common.redaction import redact, scrub


class UserError(Exception):
    """An error the user can fix. Printed as one line, without a traceback.

    The command exits with 2 where the input is wrong (ConfigError, StoreError), and with 1 where a run failed.
    """


class ConfigError(UserError):
    """A setting, or the data or model that a setting names, is invalid. Exit code 2.

    Its text is one line, `key = value: reason. hint`.
    """

    def __init__(self, key: str, value: object, reason: str, hint: str) -> None:
        """key: of the config, dotted.
        value: the invalid one.
        reason: why it is invalid.
        hint: how to fix it.
        """
        self.key, self.value, self.reason, self.hint = key, value, reason, hint
        super().__init__(key, value, reason, hint)  # all four, so that it survives pickling by Ray

    def __str__(self) -> str:
        value = str(redact(self.value))
        # On one line, even if the value has line breaks. A space at an end is shown by quotes.
        shown = repr(value) if value != value.strip(" ") else " ".join(value.split())
        return f"{self.key} = {shown[:200]}: {scrub(self.reason)}. {self.hint}"


class OwnCodeError(ConfigError):
    """The user's own code raised an exception, which is the `__cause__`, or returned something invalid. Exit code 1.

    The checks before a command starts raise it as a plain ConfigError instead.
    """

    def __reduce__(self) -> tuple:
        """With its cause, which pickle leaves out."""
        return _own_code_error, (self.args, *_sendable(self.__cause__))


def _own_code_error(given: tuple, cause: bytes, text: str) -> OwnCodeError:
    error = OwnCodeError(*given)
    try:
        error.__cause__ = pickle.loads(cause)
    except Exception:  # of the user's own type, which can fail in any way
        error.__cause__ = RuntimeError(text)
    return error


def _sendable(error: BaseException | None) -> tuple[bytes, str]:
    """An exception, with its traceback as a note, and what to say if it cannot be read in another process."""
    if error is None:
        return pickle.dumps(None), ""
    if error.__traceback__ and not getattr(error, "__notes__", None):
        lines = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        error.add_note(f"Traceback of the process that raised it:\n{lines}")
    text = f"{type(error).__name__}: {error}"
    try:
        return pickle.dumps(error), text
    except Exception:  # of the user's own type, which can fail in any way
        return b"", text


@contextmanager
def own_code_checked() -> Iterator[None]:
    """Raise an OwnCodeError as a ConfigError, because no run has started: the user's code is invalid input."""
    try:
        yield
    except OwnCodeError as error:
        raise ConfigError(error.key, error.value, error.reason, error.hint) from error.__cause__


class HubError(ConfigError):
    """A hub id whose files are not cached, while the hub cannot be reached."""


class StoreError(UserError):
    """The logit store holds something other than what was requested. Says which part differs. Exit code 2."""


class DiskFullError(UserError):
    """No space is left on the disk. The same command resumes when there is. Exit code 1."""

    def __init__(self, where: object) -> None:
        self.where = where
        super().__init__(where)

    def __str__(self) -> str:
        return f"{self.where}: No space left on the disk or in the quota. Make room and start the command again"


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error, directly or indirectly. C++ and Rust libraries report it only as text."""
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left on device", "disk is full", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


class TrackingError(UserError):
    """MLflow has refused a request, or has not answered within its own retries. Exit code 1."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"MLflow: {error}. What has been trained is kept: when it answers, start the same command again (a sweep "
            "with --resume). --debug shows where it failed"
        )


def is_mlflow_error(error: BaseException) -> bool:
    """Whether MLflow raised it. Its classes are compared by name, because importing them takes seconds."""
    return any(kind.__name__ == "MlflowException" for kind in type(error).__mro__)


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Let a full disk, and an error of MLflow that its own tries do not outlast, be an error that a user can act on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise DiskFullError(getattr(error, "filename", None) or "output") from error
        if is_mlflow_error(error):
            raise TrackingError(error) from error
        raise


class TrainingError(UserError):
    """A training failed, such as by a loss that is not finite or a process that keeps dying. Exit code 1."""


class DivergedError(TrainingError):
    """A loss, gradient or logit is not finite. The same training would fail in the same way again."""
