"""The location of a logit store, as a value that can be sent to every process."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raykd.common.errors import ConfigError, StoreError
from raykd.common.hashing import digest
from raykd.common.output_files import LOGITS
from raykd.common.private_folder import NotPrivateError, private_folder
from raykd.config.schema import Config
from raykd.logits.cache import CachedFiles
from raykd.logits.local import LocalFiles
from raykd.logits.object_store import ObjectFiles, shown


@dataclass(frozen=True, repr=False)
class LogitStore:
    """A store has one folder for each teacher, named by its key's fingerprint.

    storage: an absolute path, or a URI that pyarrow opens (s3://, gs://, file://).
    cache: an absolute path of a folder that caches blocks, shared by the processes of a node. None: blocks in a path
        are mapped in place, and blocks of an object store are cached in raykd-<uid>/logits in the temporary folder.
        In a folder that everyone can write to, the cache is a subfolder raykd-<uid>.
    cache_gb: largest size of the cache, in 1e9 bytes.

    The repr omits credentials in a URI. Raises ConfigError for invalid values.
    """

    storage: str
    cache: str | None = None
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        hint = "Give an absolute path or a URI such as s3://BUCKET/FOLDER, because processes have other working folders"
        if "://" not in self.storage and not os.path.isabs(self.storage):
            raise ConfigError("logits.storage", self.storage, "it is neither an absolute path nor a URI", hint)
        if self.cache is not None and not os.path.isabs(self.cache):
            raise ConfigError(
                "logits.cache", self.cache, "it is not an absolute path", "Give one on each node's own disk"
            )
        if not self.cache_gb > 0:
            raise ConfigError(
                "logits.cache_gb", self.cache_gb, "it is not above 0", "Give a size that fits each node's disk"
            )

    @classmethod
    def of(cls, config: Config) -> "LogitStore":
        """The store of a job."""
        settings = config.logits
        return cls(settings.storage or str(config.store / LOGITS), settings.cache, settings.cache_gb)

    @classmethod
    def at(cls, where: "LogitStore | Path | str") -> "LogitStore":
        """The store at a path, absolute or relative, or at a URI, without options."""
        if isinstance(where, LogitStore):
            return where
        return cls(where if isinstance(where, str) and "://" in where else os.path.abspath(where))

    def __repr__(self) -> str:
        return f"LogitStore({shown(self.storage)!r}, cache={self.cache!r}, cache_gb={self.cache_gb:g})"

    def __str__(self) -> str:
        return shown(self.storage)

    def files(self, fingerprint: str = "") -> LocalFiles | ObjectFiles:
        """The files of one teacher; "": of the store itself."""
        if "://" not in self.storage:
            return LocalFiles(Path(self.storage) / fingerprint)
        if self.storage.startswith("file://"):
            return LocalFiles(Path(unquote(urlsplit(self.storage).path)) / fingerprint)
        return ObjectFiles(self.storage, fingerprint)

    def blocks(self, files: LocalFiles | ObjectFiles, fingerprint: str) -> LocalFiles | CachedFiles:
        """The object that maps one teacher's blocks: the files themselves, or a cache of them."""
        if self.cache is None and isinstance(files, LocalFiles):
            return files
        # Each store has its own subfolder, named by a digest of the address without secrets and options. Two spellings
        # of one address have two subfolders, which only takes more space.
        subfolder = digest(str(self).encode(), _endpoint(self.storage).encode()).hex()[:12]
        root = _cache(self.cache)
        return CachedFiles(files, root / subfolder / fingerprint, root, self.cache_gb)


def _endpoint(storage: str) -> str:
    """The server in a URI, because two servers can have buckets of the same name."""
    query = urlsplit(storage).query.split("&")
    return next((part for part in query if part.startswith("endpoint_override=")), "")


def _cache(given: str | None) -> Path:
    """The root of the cache. In a folder that others can write to, like the temporary one, it is a private subfolder,
    because logits decide what a student learns."""
    root = None if given is None else Path(given)
    if root is not None and not (root.exists() and root.stat().st_mode & stat.S_IWOTH):
        return root
    try:
        return private_folder() / LOGITS if root is None else private_folder(root)
    except NotPrivateError as error:
        raise StoreError(
            f"logits.cache: {error}, so its copies of logits cannot be trusted. "
            f"Remove it, or set logits.cache to a folder of your own"
        ) from None
