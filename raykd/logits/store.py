"""One teacher's logits on disk: `<store>/<fingerprint of the key>/`, a manifest and blocks.

Any number of processes may read and write at once, without locks: a block is immutable, appears
whole, and is named by its rows, so two writers of the same rows write the same file, and of
overlapping rows two files of which either serves. Not for several threads of one process.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from raykd.errors import StoreError
from raykd.hashing import digest
from raykd.logits.block import Block, DamagedBlock, open_block, write_block
from raykd.logits.files import remove_stale
from raykd.logits.key import TeacherKey
from raykd.logits.rows import RowIndex, id_array

log = logging.getLogger(__name__)


class TeacherLogits:
    """Opening one reads nothing of the logits but the blocks' checksums, once per process."""

    def __init__(self, store: Path, key: TeacherKey) -> None:
        """StoreError if the folder's manifest says something else than the key. Creates nothing."""
        self.store, self.key = Path(store).absolute(), key
        self.folder = self.store / key.fingerprint
        self.blocks: dict[str, Block] = {}  # by file name
        self.damaged: list[DamagedBlock] = []  # found, and moved aside, by this object
        self._writing = False
        key.check_manifest(self.folder)
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

        StoreError for a row that is stored, or stands here twice, with another input hash.
        """
        rows, input_hashes = RowIndex(row_ids), id_array(input_hashes, "input hashes")
        stored = np.zeros(len(rows), bool)
        for _, _, which in self.matches(rows, input_hashes):
            stored[which] = True
        return np.sort(rows.first[~stored])

    def matches(self, rows: RowIndex, input_hashes: np.ndarray) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """For each block: where in it rows that are asked for stand (k,), and which distinct rows (k,).

        input_hashes: (N, 16) uint8 of the N rows that the index was made of; checked here.
        """
        if len(input_hashes) != len(rows.which):
            raise ValueError(f"{len(rows.which)} row ids, {len(input_hashes)} input hashes")
        given = input_hashes[rows.first]
        twice = np.flatnonzero((input_hashes != given[rows.which]).any(axis=1))
        if len(twice):
            raise StoreError(
                f"{self.key}: rows {rows.first[rows.which[twice[0]]]} and {twice[0]} (and {len(twice) - 1} "
                f"more) have the same row id but are fed to the teacher differently: an id must cover all "
                f"that an input is made of, and encoding must not be random. Encode the data anew"
            )
        self.refresh()
        for block in list(self.blocks.values()):
            which = rows.find(block.row_ids)
            at = np.flatnonzero(which >= 0)
            which = which[at]
            self._check_hashes(given[which], block.input_hashes[at], rows.first[which], block.path)
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
            self._check_hashes(input_hashes, stored, np.arange(len(row_ids)), path)
        else:
            write_block(path, self.key.fingerprint, row_ids, input_hashes, logits)
            self.blocks[path.name] = open_block(path, self.key.fingerprint)
        return path

    def _check_hashes(self, given: np.ndarray, stored: np.ndarray, rows: np.ndarray, path: Path) -> None:
        wrong = np.flatnonzero((given != stored).any(axis=1))
        if len(wrong):
            raise StoreError(
                f"{self.key}: row {rows[wrong[0]]} (and {len(wrong) - 1} more of {path.name}) is stored with "
                f"another input hash: the teacher is now fed something else for the same row, so the "
                f"tokenizer's or the library's preprocessing changed without its key changing. Go back to "
                f"the versions that wrote {self.folder}, or delete that folder to have it computed anew"
            )

    def _set_aside(self, damage: DamagedBlock) -> None:
        self.damaged.append(damage.with_traceback(None))
        log.warning("%s: damaged block set aside, its rows are computed again: %s", self.key, damage)
        try:
            damage.path.replace(damage.path.with_suffix(".block.damaged"))
        except OSError as error:  # a read-only store, or another process was faster: it is not used anyway
            log.warning("could not rename it: %s", error)

    def _start_writing(self) -> None:
        """Make folder and manifest, and clear what killed writers left. Once per object."""
        if not self._writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.key.check_manifest(self.folder):
                self.key.write_manifest(self.folder)
            remove_stale(self.folder)
            self._writing = True
