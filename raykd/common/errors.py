"""Errors that a user can act on. Importable without torch or Ray."""

import errno

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
        shown = " ".join(str(redact(self.value)).split())  # on one line, even if the value has line breaks
        return f"{self.key} = {shown[:200]}: {scrub(self.reason)}. {self.hint}"


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


class TrainingError(UserError):
    """A training failed, such as by a loss that is not finite or a process that keeps dying. Exit code 1."""


class DivergedError(TrainingError):
    """A loss, gradient or logit is not finite. The same training would fail in the same way again."""
