"""Files that another node has just written. A network file system can hide them from this node for a minute."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

# NFS caches a folder's attributes for up to 60 s (acdirmax), and with them that a file does not exist.
SHOWS_SECONDS = 90.0
_LOOK_SECONDS = 0.5
_HIDDEN_FOLDERS = 3  # above a file, the most that another node has just made, as in FINGERPRINT/generation-1/model
_OCTAL = re.compile(r"\\([0-7]{3})")
_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "rootfs", "tmpfs", "xfs", "zfs", "apfs"}


def seen(path: Path, look: Callable[[], bool] | None = None) -> bool:
    """Whether a file exists. On a network file system, retries for up to SHOWS_SECONDS.

    look: whether the file exists and is the right one; called at once, then every half second. None: it exists.
    """
    look = look or path.exists
    if look():
        return True
    limit = hides_seconds(path)
    if not limit:
        return False
    log.warning("waiting up to %.0f s for %s, which another node wrote and this node does not see yet", limit, path)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        for folder in (*reversed(path.parents[:_HIDDEN_FOLDERS]), path):  # it can be a folder, too
            list_anew(folder)
        if look():
            return True
    return False


def list_anew(folder: Path) -> None:
    """Let a network file system notice which files other nodes have made in a folder.

    NFS can remember for a minute that a file does not exist, but asks its server again about a folder that is opened
    (nfs(5), "close-to-open").
    """
    with contextlib.suppress(OSError):  # what is looked for there is not there, then
        os.listdir(folder)


def hides_seconds(path: Path) -> float:
    """How long a file that another node wrote can stay hidden here, in seconds; 0 on a local disk."""
    return 0.0 if file_system(path) in _LOCAL else SHOWS_SECONDS


def file_system(path: Path) -> str:
    """The type of the file system that a path is on, as the kernel names it."""
    table = Path("/proc/self/mounts")
    if not table.exists():  # macOS, which Ray does not support for clusters of several nodes
        return "apfs"
    mount_point, mount_type = "", ""
    for line in table.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), point)  # a space is written \040
        # Of two mounts at one point, the later one counts.
        if path.resolve().is_relative_to(point) and len(point) >= len(mount_point):
            mount_point, mount_type = point, kind
    return mount_type
