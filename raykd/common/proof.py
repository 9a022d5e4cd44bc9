"""Sizes and checksums of files, to verify that a folder is complete."""

import gzip
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError, safe_open

_CHUNK = 2**20


class FileProof(TypedDict):
    bytes: int
    sha256: str


# Files (device, inode, size, time) whose checksum this process has verified.
_verified: set[tuple[int, int, int, int]] = set()


def proof_of(folder: Path, paths: Iterable[Path]) -> dict[str, FileProof]:
    """Size and checksum of each file. Names are relative to the folder, so that it can be moved."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(paths)
        if path.is_file()
    }


def damage(folder: Path, files: Mapping[str, FileProof], checksums: bool = True) -> str:
    """Name the first file that does not match its proof, and why; "" if all match.

    folder: that the names are relative to.
    files: the proofs by name.
    checksums: also compare checksums, not only sizes; each process reads each file once for this.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        stat = path.stat()
        if stat.st_size != expected["bytes"]:
            return f"{name} has {stat.st_size} bytes instead of {expected['bytes']}"
        known = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if checksums and known not in _verified:
            if _sha256(path) != expected["sha256"]:
                return f"the bytes of {name} do not match their checksum"
            _verified.add(known)
    return ""


def unreadable(path: Path) -> str:
    """Why a file without a proof is damaged, as far as its format shows; "" if it looks intact."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".gz":
            with gzip.open(path) as file:
                while file.read(_CHUNK):
                    pass
        elif path.suffix in (".npz", ".pt"):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    return f"{path.name}: {bad} does not match its checksum"
        elif path.suffix == ".safetensors":
            with safe_open(path, "numpy") as file:
                file.keys()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        return f"{path.name} cannot be read ({type(error).__name__}: {error})"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
