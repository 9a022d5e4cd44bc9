"""One teacher's logits: `<store>/<fingerprint of the key>/`, a manifest and blocks.

Any number of processes may read and write at once, without locks: a block is immutable, appears
whole, and is named by its rows, so two writers of the same rows write the same file, and of
overlapping rows two files of which either serves. Not for several threads of one process.
"""

import json
import logging
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from raykd.common.errors import StoreError
from raykd.common.hashing import digest
from raykd.logits.block import Block, DamagedBlock, block_parts
from raykd.logits.key import TeacherKey
from raykd.logits.locations import LogitStore
from raykd.logits.object_store import Unreachable
from raykd.logits.rows import RowIndex, id_array

log = logging.getLogger(__name__)

USES = "uses"  # folder of the notes of who uses the logits


def block_name(row_ids: np.ndarray) -> str:
    """(n, 16) uint8: of the file that holds exactly these rows, in this order."""
    return f"{digest(row_ids.tobytes()).hex()}.block"


class TeacherLogits:
    """Opening one reads nothing of the logits but the blocks' checksums, once per process."""

    def __init__(self, store: LogitStore | Path | str, key: TeacherKey, passing_over: Collection[str] = ()) -> None:
        """StoreError if the folder's manifest says something else than the key. Creates nothing in the store.

        passing_over: names of blocks that need not be looked into, for who knows that they hold none of the rows
        that will be asked for, unless they hold exactly these. A replica that looked into all would, before each
        block, go through everything that was computed so far.
        """
        self.store, self.key, self.passing_over = LogitStore.at(store), key, frozenset(passing_over)
        self.files = self.store.files(key.fingerprint)
        self.blocks: dict[str, Block] = {}  # by file name
        self.arrived: list[str] = []  # names in the order in which they came into `blocks`, also of those that left it
        self.damaged: list[DamagedBlock] = []  # found, and moved aside, by this object
        self._source = self.store.blocks(self.files, key.fingerprint)
        self._unusable: dict[str, tuple[int, int]] = {}  # damaged and still there: name and stamp
        self._writing = False
        key.check_manifest(self.files)
        self.refresh(always=True)

    def __reduce__(self) -> tuple:
        return TeacherLogits, (self.store, self.key, self.passing_over)  # another process opens and verifies its own

    def refresh(self, always: bool = False) -> list[Block]:
        """See what others wrote or removed since; returns the new blocks. Damaged ones go aside.

        Costs little when called often: what came within the last second may be left to the next call,
        unless `always`.
        """
        listed = self.files.names(always)
        if listed is None:
            return []
        names = {name for name in listed if name.endswith(".block")}
        for name in self.blocks.keys() - names:
            del self.blocks[name]
        opened = (self._open(name) for name in sorted(names - self.blocks.keys() - self.passing_over))
        return [block for block in opened if block]

    def missing(self, row_ids: np.ndarray, input_hashes: np.ndarray) -> np.ndarray:
        """(N, 16), (N, 16) uint8 -> (K,) int64 positions of rows not stored, each distinct row once.

        StoreError for a row that is stored, or stands here twice, with another input hash.
        """
        rows, input_hashes = RowIndex(row_ids), id_array(input_hashes, "input hashes")
        stored = np.zeros(len(rows), bool)
        self.check_inputs(rows, input_hashes)
        self.refresh(always=True)
        own = self._stored_now(block_name(row_ids)) if self.passing_over else None
        for block in [*self.blocks.values(), *([own] if own else [])]:
            stored[self.match(block, rows, input_hashes)[1]] = True
        return np.sort(rows.first[~stored])

    def check_inputs(self, rows: RowIndex, input_hashes: np.ndarray) -> None:
        """input_hashes: (N, 16) uint8 of the N rows of the index; StoreError if a row stands there with two."""
        if len(input_hashes) != len(rows.which):
            raise ValueError(f"{len(rows.which)} row ids, {len(input_hashes)} input hashes")
        if len(rows) == len(rows.which):  # no row stands there twice: of millions, half a second each
            return
        twice = np.flatnonzero((input_hashes != input_hashes[rows.first][rows.which]).any(axis=1))
        if len(twice):
            raise StoreError(
                f"{self.key}: rows {rows.first[rows.which[twice[0]]]} and {twice[0]} (and {len(twice) - 1} "
                f"more) have the same row id but are fed to the teacher differently: an id must cover all "
                f"that an input is made of, and encoding must not be random. Encode the data anew"
            )

    def match(self, block: Block, rows: RowIndex, input_hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the block rows that are asked for stand (k,), and which distinct rows they are (k,).

        input_hashes: (N, 16) uint8 of the N rows of the index; StoreError if the block's are others.
        """
        which = rows.find(block.row_ids)
        at = np.flatnonzero(which >= 0)
        first = rows.first[which[at]]
        self._check_hashes(input_hashes[first], block.input_hashes[at], first, block.path)
        return at, which[at]

    def add(self, row_ids: np.ndarray, input_hashes: np.ndarray, logits: Sequence[np.ndarray]) -> Path:
        """Store n rows: (n, 16), (n, 16) uint8 and n arrays (H, C) float16. Returns the block's path.

        Rows that are stored as this very block are left as they are. ValueError for logits that are
        not finite or not float16, and for a row given twice.
        """
        row_ids, input_hashes = id_array(row_ids, "row ids"), id_array(input_hashes, "input hashes")
        if len(RowIndex(row_ids)) < len(row_ids):
            raise ValueError("a block holds each row once; ask `missing` which rows to add")
        self._start_writing()
        name = block_name(row_ids)
        if block := self._stored_now(name):
            self._check_hashes(input_hashes, block.input_hashes, np.arange(len(row_ids)), block.path)
        else:
            parts = block_parts(self.key.fingerprint, row_ids, input_hashes, logits)
            block = self._take_in(name, self._source.put(name, self.key.fingerprint, *parts))
        return block.path

    def note_use(self, by: str) -> None:
        """Record that the experiment `by` uses these logits now: for people who ask what may be removed.

        One file a name, so that nobody waits for anybody. Only a warning where the store cannot be written.
        """
        safe = re.sub(r"[^A-Za-z0-9_.-]", "_", by)[:80]
        if safe != by or safe.startswith("."):
            safe = f"_{safe}-{digest(by.encode()).hex()[:8]}"
        note = {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            self._start_writing()
            self.files.write(f"{USES}/{safe}.json", (json.dumps(note) + "\n").encode())
        except (OSError, Unreachable) as error:
            log.warning("%s: cannot note in %s that %s uses it: %s", self.key, self.files.where, by, error)

    def _stored_now(self, name: str) -> Block | None:
        try:
            self.files.stamp(name, fresh=True)
        except FileNotFoundError:  # also if it was there: another process may have found it damaged
            return None
        return self.blocks.get(name) or self._open(name)

    def _open(self, name: str) -> Block | None:
        """None if it is damaged, or moved aside by another process since it was listed."""
        try:
            if self._unusable and self._unusable.get(name) == self.files.stamp(name):
                return None
            return self._take_in(name, self._source.open(name, self.key.fingerprint))
        except FileNotFoundError:
            return None
        except DamagedBlock as damage:
            self._set_aside(name, damage)
            return None

    def _take_in(self, name: str, block: Block) -> Block:
        if name not in self.passing_over:
            self.blocks[name] = block
            self.arrived.append(name)
        self._unusable.pop(name, None)
        return block

    def _check_hashes(self, given: np.ndarray, stored: np.ndarray, rows: np.ndarray, path: Path) -> None:
        wrong = np.flatnonzero((given != stored).any(axis=1))
        if len(wrong):
            raise StoreError(
                f"{self.key}: row {rows[wrong[0]]} (and {len(wrong) - 1} more of {path.name}) is stored with "
                f"another input hash: the teacher is now fed something else for the same row, so the "
                f"tokenizer's or the library's preprocessing changed without its key changing. Go back to "
                f"the versions that wrote {self.files.where}, or delete that folder to have it computed anew"
            )

    def _set_aside(self, name: str, damage: DamagedBlock) -> None:
        self.damaged.append(damage.with_traceback(None))
        log.warning("%s: damaged block set aside, its rows are computed again: %s", self.key, damage)
        try:
            self._unusable[name] = self.files.stamp(name)
            self.files.set_aside(name)
            del self._unusable[name]
        except FileNotFoundError:  # another process was faster
            self._unusable.pop(name, None)
        except (OSError, Unreachable) as error:  # a read-only store: not used, and not read again until it changes
            log.warning("could not rename it: %s", error)

    def _start_writing(self) -> None:
        """Make folder and manifest, and clear what killed writers left. Once per object."""
        if not self._writing:
            if not self.key.check_manifest(self.files):
                self.key.write_manifest(self.files)
            self.files.clear_stale()
            self._writing = True
