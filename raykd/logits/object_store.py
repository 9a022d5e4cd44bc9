"""The files of one teacher's logits in an object store, with the same methods as `LocalFiles`.

Blocks cannot be memory-mapped here, only in the nodes' caches (`raykd.logits.cache`).
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import pyarrow.fs

from raykd.common.errors import ConfigError, StoreError
from raykd.common.redaction import hide, scrub, secrets_of, split_user
from raykd.logits.local import FINGERPRINT, RELIST_SECONDS

# Without the first, even a small object takes three requests; without the second, a server that is gone is retried for
# 15 minutes.
DEFAULTS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=60"}


class Unreachable(StoreError):
    """The storage does not answer, or answers with an error."""


class ObjectFiles:
    """A folder of an object store (s3://, gs:// or another that pyarrow opens). Raises Unreachable."""

    def __init__(self, uri: str, folder: str) -> None:
        self._uri, self.where = uri, "/".join(filter(None, [shown(uri), folder]))
        with self._translated():
            self._fs, base = _filesystem(uri)
        self._base = "/".join(filter(None, [base, folder]))
        self._stamps: dict[str, tuple[int, int]] = {}  # from the last listing, which contains them
        self._listed = 0.0

    def names(self, always: bool = True) -> list[str] | None:
        """As of LocalFiles; a change is seen up to RELIST_SECONDS later, unless always."""
        if not always and time.monotonic() - self._listed < RELIST_SECONDS:
            return None
        files = [info for info in self._list() if info.is_file]
        self._stamps = {info.base_name: (info.size, info.mtime_ns) for info in files}
        self._listed = time.monotonic()
        return list(self._stamps)

    def teachers(self) -> list[str]:
        return sorted(i.base_name for i in self._list() if not i.is_file and FINGERPRINT.fullmatch(i.base_name))

    def stamp(self, name: str, fresh: bool = False) -> tuple[int, int]:
        if fresh or name not in self._stamps:
            with self._translated():
                info = self._fs.get_file_info(f"{self._base}/{name}")
            if not info.is_file:
                raise FileNotFoundError(f"{self.where}/{name}")
            self._stamps[name] = (info.size, info.mtime_ns)
        return self._stamps[name]

    def read(self, name: str, most: int | None = None) -> bytes:
        with self._translated(), self._fs.open_input_file(f"{self._base}/{name}") as file:
            return file.read(most)  # in one request, so never part of an old and part of a new object

    def write(self, name: str, *parts: bytes | memoryview, durable: bool = True) -> None:
        """Write an object, in one request up to 10 MB, else as a multipart upload. Both are atomic.

        durable: as of `LocalFiles`; an object always is.
        """
        whole = b"".join(parts)
        with self._translated(), self._fs.open_output_stream(f"{self._base}/{name}") as file:
            file.write(whole)
        self._stamps.pop(name, None)

    def quarantine(self, name: str) -> None:
        with self._translated():  # a copy and a deletion
            self._fs.move(f"{self._base}/{name}", f"{self._base}/{name}.damaged")
        self._stamps.pop(name, None)

    def clear_stale(self) -> None:
        """Nothing to do: killed writers leave no objects behind."""

    def remove(self) -> None:
        with self._translated():
            self._fs.delete_dir(self._base)

    def _list(self) -> list[Any]:
        with self._translated():
            return self._fs.get_file_info(pyarrow.fs.FileSelector(self._base, allow_not_found=True))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise OSErrors of the storage as Unreachable, without secrets."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            hint = "Check the address, the network and the permissions of the credentials in the environment"
            raise Unreachable(f"logits.storage = {self.where}: {scrubbed(error, self._uri)}. {hint}") from None


@functools.cache
def _filesystem(uri: str) -> tuple[Any, str]:
    """pyarrow's file system, once per process, and the path in it. ConfigError for a URI that it cannot open."""
    option = DEFAULTS.get(uri.partition(":")[0])
    if option and option.partition("=")[0] not in uri:
        uri += ("&" if "?" in uri else "?") + option
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError) as error:  # its text contains the URI, which can contain a secret
        reason = f"pyarrow cannot open it ({type(error).__name__})"
        hint = "Write s3://BUCKET/FOLDER?region=... (also endpoint_override, scheme), gs://BUCKET/FOLDER, or a path"
        raise ConfigError("logits.storage", shown(uri), reason, hint) from None
    if not path.strip("/"):
        raise ConfigError("logits.storage", shown(uri), "it names no bucket", "Write s3://BUCKET/FOLDER")
    return filesystem, path.rstrip("/")


def shown(storage: str) -> str:
    """A storage's address for messages: a URI without user, password and query."""
    if "://" not in storage:
        return storage
    scheme, _, rest = storage.partition("://")
    user, after = split_user(storage)
    return f"{scheme}://{(after if user else rest).partition('?')[0]}".rstrip("/")


def scrubbed(error: OSError, uri: str) -> str:
    """An error's text, in one line and without the URI's secrets."""
    return " ".join(scrub(hide(str(error), secrets_of(uri))).split())[:400]
