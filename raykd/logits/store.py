"""One teacher's logits on disk: `<store>/<fingerprint of the key>/`, a manifest and blocks.

Any number of processes may read and write at once, without locks: a block is immutable, appears
whole, and is named by its rows, so two writers of the same rows write the same file, and of
overlapping rows two files of which either serves. Not for several threads of one process.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raykd.errors import StoreError
from raykd.hashing import digest, fingerprint
from raykd.logits.block import Block, DamagedBlock, id_array, open_block, write_atomically, write_block
from raykd.logits.rows import RowIndex

FORMAT = 1
STALE_SECONDS = 24 * 3600  # a temporary file this old was left by a writer that was killed
log = logging.getLogger(__name__)


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


class TeacherLogits:
    """Opening one reads nothing of the logits but the blocks' checksums, once per process."""

    def __init__(self, store: Path, key: TeacherKey) -> None:
        """StoreError if the folder's manifest says something else than the key. Creates nothing."""
        self.store, self.key = Path(store).absolute(), key
        self.folder = self.store / key.fingerprint
        self.blocks: dict[str, Block] = {}  # by file name
        self.damaged: list[DamagedBlock] = []  # found, and moved aside, by this object
        self._writing = False
        self._check_manifest()
        self.refresh()

    def __reduce__(self) -> tuple:
        return TeacherLogits, (self.store, self.key)  # another process opens and verifies its own

    def refresh(self) -> list[Block]:
        """See what others wrote or removed since; returns the new blocks. Damaged ones go aside."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".block"))
        except FileNotFoundError:
            names = []
        for name in self.blocks.keys() - set(names):
            del self.blocks[name]
        new = []
        for name in names:
            if name in self.blocks:
                continue
            try:
                self.blocks[name] = open_block(self.folder / name, self.key.fingerprint)
                new.append(self.blocks[name])
            except FileNotFoundError:  # moved aside by another process since the listing
                continue
            except DamagedBlock as damage:
                self._set_aside(damage)
        return new

    def missing(self, row_ids: np.ndarray, input_hashes: np.ndarray) -> np.ndarray:
        """(N, 16), (N, 16) uint8 -> (K,) int64 positions of rows not stored, each distinct row once.

        StoreError for a row that is stored, or given twice, with another input hash.
        """
        rows, input_hashes = RowIndex(row_ids), id_array(input_hashes, "input hashes")
        stored = np.zeros(len(rows), bool)
        for _, _, which in self.matches(rows, input_hashes):
            stored[which] = True
        return np.sort(rows.first[~stored])

    def matches(
        self, rows: RowIndex, input_hashes: np.ndarray
    ) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """For each block: where in it rows that are asked for stand (k,), and which distinct rows (k,).

        input_hashes: (N, 16) uint8 of the N rows that the index was made of; checked here.
        """
        self.refresh()
        given = input_hashes[rows.first]
        if len(rows) < len(input_hashes):
            self._check_hashes(input_hashes, given[rows.which], np.arange(len(input_hashes)), "also given")
        for block in list(self.blocks.values()):
            which = rows.find(block.row_ids)
            at = np.flatnonzero(which >= 0)
            which = which[at]
            stored = f"stored (in {block.path.name})"
            self._check_hashes(given[which], block.input_hashes[at], rows.first[which], stored)
            yield block, at, which

    def add(self, row_ids: np.ndarray, input_hashes: np.ndarray, logits: Sequence[np.ndarray]) -> Path:
        """Store n rows: (n, 16), (n, 16) uint8 and n arrays (H, C) float16. Returns the block's path.

        Rows that are stored as this very block are left as they are. ValueError for logits that are
        not finite or not float16, and for a row given twice.
        """
        row_ids, input_hashes = id_array(row_ids, "row ids"), id_array(input_hashes, "input hashes")
        if len(RowIndex(row_ids)) < len(row_ids):
            raise ValueError("a block holds each row once; ask `missing` which rows to add")
        self._start_writing()
        self.refresh()
        path = self.folder / f"{digest(row_ids.tobytes()).hex()}.block"
        if path.name in self.blocks:
            stored = self.blocks[path.name].input_hashes
            self._check_hashes(input_hashes, stored, np.arange(len(row_ids)), f"stored (in {path.name})")
        else:
            write_block(path, self.key.fingerprint, row_ids, input_hashes, logits)
            self.blocks[path.name] = open_block(path, self.key.fingerprint)
        return path

    def _check_hashes(self, given: np.ndarray, other: np.ndarray, rows: np.ndarray, how: str) -> None:
        wrong = np.flatnonzero((given != other).any(axis=1))
        if len(wrong):
            raise StoreError(
                f"{self.key}: row {rows[wrong[0]]} (and {len(wrong) - 1} more) is {how} with another input "
                f"hash: the teacher is now fed something else for the same row, so the tokenizer's or the "
                f"library's preprocessing changed without its key changing. Go back to the versions that "
                f"wrote {self.folder}, or delete that folder, and its logits are computed anew"
            )

    def _set_aside(self, damage: DamagedBlock) -> None:
        self.damaged.append(damage.with_traceback(None))
        log.warning("%s: damaged block set aside, its rows are computed again: %s", self.key, damage)
        try:
            damage.path.replace(damage.path.with_suffix(".block.damaged"))
        except OSError as error:  # a read-only store, or another process was faster: it is not used anyway
            log.warning("could not rename it: %s", error)

    def _check_manifest(self) -> bool:
        """False if there is none yet."""
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            stored = {"format": manifest["format"], **manifest["key"]}
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            mend = "Delete this file: it is written anew, and the blocks say themselves whose they are"
            raise StoreError(f"{path} cannot be read ({error!r}). {mend}") from error
        for part, value in {"format": FORMAT, **self.key.parts}.items():
            if stored.get(part) != value:
                raise StoreError(
                    f"{self.key}: {part} is {value!r}, but {path} says {stored.get(part)!r}. The folder was "
                    f"copied, edited or written by another version of raykd: delete it or use another store"
                )
        return True

    def _start_writing(self) -> None:
        """Make folder and manifest, and clear what killed writers left. Once per object."""
        if self._writing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._check_manifest():
            manifest = {"format": FORMAT, "key": self.key.parts, "about": self.key.about}
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.folder / "manifest.json", text.encode())
        for left in self.folder.glob(".*.tmp"):
            try:
                if left.stat().st_mtime < time.time() - STALE_SECONDS:
                    left.unlink()
            except FileNotFoundError:  # its writer has finished
                continue
        self._writing = True
