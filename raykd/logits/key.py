"""The key that identifies a teacher's logits, and the manifest that stores it in the blocks' folder."""

import json
from dataclasses import dataclass, field
from typing import Any

from raykd.common.errors import StoreError
from raykd.common.hashing import fingerprint
from raykd.logits.local import LocalFiles
from raykd.logits.object_store import ObjectFiles

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TeacherKey:
    """Everything that a teacher's logits depend on, as hex digests or short text.

    metadata: for people (a name, a path, ...); stored in the manifest as `about`, not part of the identity.
    """

    weights: str
    processor: str
    preprocessing: str
    dtype: str
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def parts(self) -> dict[str, str]:
        names = ("weights", "processor", "preprocessing", "dtype")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.parts)

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", self.fingerprint[:12]))

    def __str__(self) -> str:
        return f"teacher {self.name!r}"

    def check_manifest(self, files: LocalFiles | ObjectFiles) -> bool:
        """Whether there is a manifest. Raises StoreError, naming the part, if it differs from this key."""
        manifest = read_manifest(files)
        if manifest is None:
            return False
        stored = {"format": manifest["format"], **manifest["key"]}
        for part, value in {"format": FORMAT, **self.parts}.items():
            if stored.get(part) != value:
                raise StoreError(
                    f"{self}: {part} is {value!r}, but {files.where}/{MANIFEST} says {stored.get(part)!r}. The folder "
                    f"was copied, edited or written by another version of raykd. Delete it or use another store"
                )
        return True

    def write_manifest(self, files: LocalFiles | ObjectFiles) -> None:
        manifest = {"format": FORMAT, "key": self.parts, "about": self.metadata}
        files.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def read_manifest(files: LocalFiles | ObjectFiles) -> dict[str, Any] | None:
    """The manifest, {format, key: {part: value}, about: {...}}; None if there is none. StoreError if it is invalid."""
    try:
        manifest = json.loads(files.read(MANIFEST))
        return {"format": manifest["format"], "key": {**manifest["key"]}, "about": {**manifest.get("about", {})}}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "Delete this file; it is written again, and the blocks contain their teacher's key themselves"
        raise StoreError(f"{files.where}/{MANIFEST} cannot be read ({error!r}). {hint}") from error
