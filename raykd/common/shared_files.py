"""Files that another node has just written: a network file system may hide them from this one for a minute."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

# NFS keeps a folder's attributes for up to 60 s (acdirmax), and with them that a file is not there.
SHOWS_SECONDS = 90.0
_LOOK_SECONDS = 0.5
_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "rootfs", "tmpfs", "xfs", "zfs", "apfs"}


def seen(path: Path, look: Callable[[], bool] | None = None) -> bool:
    """Whether the file is there; on a network file system it is looked for again until SHOWS_SECONDS are over.

    look: says whether the file is there, and the right one; it is called at once, then every half second.
    """
    look = look or path.exists
    if look():
        return True
    limit = hides_seconds(path)
    if not limit:
        return False
    log.warning("waiting up to %.0f s for %s, which another node has written and this one does not see", limit, path)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        if look():
            return True
    return False


def hides_seconds(path: Path) -> float:
    """How long a file that another node has written may be hidden here: 0 on a local disk."""
    return 0.0 if file_system(path) in _LOCAL else SHOWS_SECONDS


def file_system(path: Path) -> str:
    """The type of the file system that a path is on, as the kernel names it."""
    table = Path("/proc/self/mounts")
    if not table.exists():  # macOS, where no cluster of several nodes runs
        return "apfs"
    found = ("", "")
    for line in table.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")  # a space is written \040
        if path.resolve().is_relative_to(point) and len(point) >= len(found[0]):  # of two at one point the later counts
            found = (point, kind)
    return found[1]
