"""Hashes of content. Every fingerprint in raykd is computed here."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

DIGEST_BYTES = 16  # 128 bits: a collision among 10 million rows has a probability of about 1e-25


def digest(*parts: bytes) -> bytes:
    """BLAKE2b-128 of the parts, each prefixed by its length so that ("ab", "c") is not ("a", "bc")."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def fingerprint(value: object) -> str:
    """Hex digest of a JSON-able value, independent of the order of keys."""
    return digest(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hex()


def file_digest(paths: Iterable[Path]) -> str:
    """Hex digest of files' names and bytes, in the order of their names."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in sorted(paths, key=lambda p: p.name):
        state.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()
