"""A folder of this user alone, inside one that others can write to, like the temporary one."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path


class NotPrivateError(OSError):
    """The folder is another user's, a link, or open to others."""


def private_folder(parent: Path | None = None) -> Path:
    """raykd-<uid> in `parent` (default: the temporary folder), created if needed.

    Raises NotPrivateError, or another OSError if it cannot be created.
    """
    folder = (parent or Path(tempfile.gettempdir())) / f"raykd-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()  # does not follow a symbolic link, which another user could have created
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise NotPrivateError(f"{folder} is a link, another user's or open to others")
    return folder
