"""Whose logits they are: the key of a teacher, and the manifest that keeps it beside the blocks."""

import json
from dataclasses import dataclass, field
from typing import Any

from raykd.common.errors import StoreError
from raykd.common.hashing import fingerprint
from raykd.logits.local import Folder
from raykd.logits.object_store import Bucket

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TeacherKey:
    """What a teacher's logits depend on. Hex digests or short text.

    `about` (a name, a path, ...) is for people: kept in the manifest, no part of the identity.
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

    def check_manifest(self, files: Folder | Bucket) -> bool:
        """False if there is none yet; StoreError, naming the part, if it says something else."""
        manifest = read_manifest(files)
        if manifest is None:
            return False
        stored = {"format": manifest["format"], **manifest["key"]}
        for part, value in {"format": FORMAT, **self.parts}.items():
            if stored.get(part) != value:
                raise StoreError(
                    f"{self}: {part} is {value!r}, but {files.where}/{MANIFEST} says {stored.get(part)!r}. The folder "
                    f"was copied, edited or written by another version of raykd: delete it or use another store"
                )
        return True

    def write_manifest(self, files: Folder | Bucket) -> None:
        manifest = {"format": FORMAT, "key": self.parts, "about": self.metadata}
        files.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def read_manifest(files: Folder | Bucket) -> dict[str, Any] | None:
    """{format, key: {part: value}, about: {...}}; None if there is none yet. StoreError for anything else."""
    try:
        manifest = json.loads(files.read(MANIFEST))
        return {"format": manifest["format"], "key": {**manifest["key"]}, "about": {**manifest.get("about", {})}}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "Delete this file: it is written anew, and the blocks say themselves whose they are"
        raise StoreError(f"{files.where}/{MANIFEST} cannot be read ({error!r}). {hint}") from error
