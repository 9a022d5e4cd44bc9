"""Where a store of logits is, as a value that travels to every process."""

import contextlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raykd.common.errors import ConfigError, StoreError
from raykd.common.hashing import digest
from raykd.config.schema import Config
from raykd.logits.cache import Copies
from raykd.logits.local import Folder
from raykd.logits.object_store import Bucket, shown


@dataclass(frozen=True, repr=False)
class LogitStore:
    """One folder a teacher, named by its key's fingerprint.

    storage: an absolute path, or a URI that pyarrow opens (s3://, gs://, file://).
    cache: an absolute folder for local copies of the blocks, one for all processes of a node; None: a path's
    blocks are mapped where they are, an object store's are kept in raykd-<uid>/logits in the temporary folder. In a
    folder that everyone can write to they are kept in a folder raykd-<uid> of its own.
    cache_gb: how much the cache may hold, in 1e9 bytes.

    Its repr leaves out what a URI may hold of credentials. ConfigError for values that cannot work.
    """

    storage: str
    cache: str | None = None
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        hint = "Give an absolute path or a URI such as s3://BUCKET/FOLDER: processes have other working folders"
        if "://" not in self.storage and not os.path.isabs(self.storage):
            raise ConfigError("logits.storage", self.storage, "it is neither an absolute path nor a URI", hint)
        if self.cache is not None and not os.path.isabs(self.cache):
            raise ConfigError(
                "logits.cache", self.cache, "it is not an absolute path", "Give one on each node's own disk"
            )
        if not self.cache_gb > 0:
            raise ConfigError(
                "logits.cache_gb", self.cache_gb, "it is not above 0", "Give what a node's disk has room for"
            )

    @classmethod
    def of(cls, config: Config) -> "LogitStore":
        """Where a job keeps its logits."""
        settings = config.logits
        return cls(settings.storage or str(config.store / "logits"), settings.cache, settings.cache_gb)

    @classmethod
    def at(cls, where: "LogitStore | Path | str") -> "LogitStore":
        """A path, also a relative one, or a URI, as a store without options."""
        if isinstance(where, LogitStore):
            return where
        return cls(where if isinstance(where, str) and "://" in where else os.path.abspath(where))

    def __repr__(self) -> str:
        return f"LogitStore({shown(self.storage)!r}, cache={self.cache!r}, cache_gb={self.cache_gb:g})"

    def __str__(self) -> str:
        return shown(self.storage)

    def files(self, fingerprint: str = "") -> Folder | Bucket:
        """The files of one teacher, or of the store itself."""
        if "://" not in self.storage:
            return Folder(Path(self.storage) / fingerprint)
        if self.storage.startswith("file://"):
            return Folder(Path(unquote(urlsplit(self.storage).path)) / fingerprint)
        return Bucket(self.storage, fingerprint)

    def blocks(self, files: Folder | Bucket, fingerprint: str) -> Folder | Copies:
        """What maps the blocks among these files of one teacher."""
        if self.cache is None and isinstance(files, Folder):
            return files
        # A digest, so that two stores have their own copies; of nothing secret, and not of what may change.
        # Different spellings of one store have their own copies too, which costs room and nothing else.
        place = digest(str(self).encode(), _endpoint(self.storage).encode()).hex()[:12]
        root = _cache(self.cache)
        return Copies(files, root / place / fingerprint, root, self.cache_gb)


def _endpoint(storage: str) -> str:
    """Two servers may have buckets of the same name."""
    query = urlsplit(storage).query.split("&")
    return next((part for part in query if part.startswith("endpoint_override=")), "")


def _cache(given: str | None) -> Path:
    """The root of the copies. In a folder that others can write to, as the temporary one is, it is this user's alone:
    logits decide what a student learns."""
    if given is None:
        return _private(Path(tempfile.gettempdir())) / "logits"
    root = Path(given)
    return _private(root) if root.exists() and root.stat().st_mode & stat.S_IWOTH else root


def _private(parent: Path) -> Path:
    """raykd-<uid> in `parent`, made if need be. StoreError if another user has made it, or could write to it."""
    folder = parent / f"raykd-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # not what a symbolic link points to: another user may have made it
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StoreError(
            f"logits.cache: {folder} is a link, another user's or open to others, so its copies of logits cannot be "
            f"trusted. Remove it, or name a folder of your own as logits.cache"
        )
    return folder
