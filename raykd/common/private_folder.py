"""Folders of this user in places that others can write to, like the temporary folder."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

ENTER, WRITE = 0o077, 0o002  # permission bits: all of the group's and of others'; writing by others


class NotPrivateError(OSError):
    """The folder is another user's, a link, or open to others."""


def private_folder(parent: Path | None = None) -> Path:
    """raykd-<uid> in `parent` (default: the temporary folder), which nobody else can enter. See `own_folder`."""
    return own_folder((parent or Path(tempfile.gettempdir())) / f"raykd-{os.getuid()}", ENTER)


def own_folder(folder: Path, forbidden: int) -> Path:
    """The folder, created for this user alone if needed.

    forbidden: permissions that it must not have, ENTER or WRITE.

    Raises NotPrivateError if it is not this user's, or another OSError if it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()  # does not follow a symbolic link, which another user could have created
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & forbidden:
        raise NotPrivateError(f"{folder} is a link, another user's or open to others")
    return folder
