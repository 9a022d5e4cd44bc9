"""Whose logits they are: the key of a teacher, and the manifest that keeps it beside the blocks."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raykd.errors import StoreError
from raykd.hashing import fingerprint
from raykd.logits.files import write_atomically

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
    about: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def parts(self) -> dict[str, str]:
        names = ("weights", "processor", "preprocessing", "dtype")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.parts)

    def __str__(self) -> str:
        return f"teacher {self.about.get('name', self.fingerprint[:12])!r}"

    def check_manifest(self, folder: Path) -> bool:
        """False if there is none yet; StoreError, naming the part, if it says something else."""
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            stored = {"format": manifest["format"], **manifest["key"]}
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            mend = "Delete this file: it is written anew, and the blocks say themselves whose they are"
            raise StoreError(f"{path} cannot be read ({error!r}). {mend}") from error
        for part, value in {"format": FORMAT, **self.parts}.items():
            if stored.get(part) != value:
                raise StoreError(
                    f"{self}: {part} is {value!r}, but {path} says {stored.get(part)!r}. The folder was "
                    f"copied, edited or written by another version of raykd: delete it or use another store"
                )
        return True

    def write_manifest(self, folder: Path) -> None:
        manifest = {"format": FORMAT, "key": self.parts, "about": self.about}
        write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
