"""One teacher's logits: `<store>/<fingerprint of the key>/`, a manifest and blocks.

Any number of processes can read and write at once, without locks. A block is immutable, written atomically and named
by its rows. So two writers of the same rows write the same file, and writers of overlapping rows write two files,
either of which can be used. Not thread-safe.
"""

import json
import logging
import re
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from raykd.common.errors import StoreError
from raykd.common.hashing import digest
from raykd.logits.block import Block, DamagedBlock, block_parts
from raykd.logits.key import TeacherKey
from raykd.logits.logit_store import LogitStore
from raykd.logits.object_store import Unreachable
from raykd.logits.rows import RowIndex, id_array

log = logging.getLogger(__name__)

USES = "uses"  # folder of the notes of which experiments use the logits
COST = "cost.json"  # what computing the logits took


def block_name(row_ids: np.ndarray) -> str:
    """The name of the file with exactly these rows, (n, 16) uint8, in this order."""
    return f"{digest(row_ids.tobytes()).hex()}.block"


class TeacherLogits:
    """One teacher's stored logits. Opening it verifies the blocks' checksums, once per process, and reads no logits."""

    def __init__(self, store: LogitStore | Path | str, key: TeacherKey, passing_over: Collection[str] = ()) -> None:
        """Open the logits; writes nothing. Raises StoreError if the folder's manifest differs from the key.

        store: its location.
        key: of the teacher.
        passing_over: names of blocks that need not be opened, because the caller knows that they hold none of the rows
            it will request, or exactly those. Otherwise a replica would open every block computed so far before it
            computes the next one.
        """
        self.store, self.key, self.passing_over = LogitStore.at(store), key, frozenset(passing_over)
        self.files = self.store.files(key.fingerprint)
        self.blocks: dict[str, Block] = {}  # by file name
        self.arrived: list[str] = []  # names in the order in which they were added to `blocks`, including removed ones
        self.damaged: list[DamagedBlock] = []  # quarantined by this object
        self._source = self.store.blocks(self.files, key.fingerprint)
        self._unusable: dict[str, tuple[int, int]] = {}  # damaged but not renamed: name and stamp
        self._writing = False
        key.check_manifest(self.files)
        self.refresh(always=True)

    def __reduce__(self) -> tuple:
        return TeacherLogits, (self.store, self.key, self.passing_over)  # each process opens and verifies the blocks

    def refresh(self, always: bool = False) -> list[Block]:
        """Add the blocks that others wrote, drop those they removed; returns the new ones. Quarantines damaged ones.

        always: otherwise, to be cheap to call often, blocks of the last second can be left to the next call.
        """
        self._refreshed, listed = time.monotonic(), self.files.names(always)
        if listed is None:
            return []
        names = {name for name in listed if name.endswith(".block")}
        for name in self.blocks.keys() - names:
            del self.blocks[name]
        opened = (self._open(name) for name in sorted(names - self.blocks.keys() - self.passing_over))
        return [block for block in opened if block]

    def missing(self, row_ids: np.ndarray, input_hashes: np.ndarray, max_age: float = 0.0) -> np.ndarray:
        """(K,) int64 positions of the rows that are not stored, each distinct row once.

        row_ids: (N, 16) uint8.
        input_hashes: (N, 16) uint8.
        max_age: seconds that the last listing of the blocks may be old, since listing thousands takes milliseconds.
            With `passing_over`, the block with exactly these rows is looked for in any case.

        Raises StoreError if a row is stored, or given twice, with another input hash.
        """
        rows, input_hashes = RowIndex(row_ids), id_array(input_hashes, "input hashes")
        stored = np.zeros(len(rows), bool)
        self.check_inputs(rows, input_hashes)
        if time.monotonic() - self._refreshed >= max_age:
            self.refresh(always=True)
        own = self._stored_now(block_name(row_ids)) if self.passing_over else None
        for block in [*self.blocks.values(), *([own] if own else [])]:
            stored[self.match(block, rows, input_hashes)[1]] = True
        return np.sort(rows.first[~stored])

    def check_inputs(self, rows: RowIndex, input_hashes: np.ndarray) -> None:
        """Raise StoreError if a row has two input hashes.

        rows: the index of N rows.
        input_hashes: (N, 16) uint8.
        """
        if len(input_hashes) != len(rows.which):
            raise ValueError(f"{len(rows.which)} row ids, {len(input_hashes)} input hashes")
        if len(rows) == len(rows.which):  # no duplicates; saves half a second for millions of rows
            return
        twice = np.flatnonzero((input_hashes != input_hashes[rows.first][rows.which]).any(axis=1))
        if len(twice):
            raise StoreError(
                f"{self.key}: rows {rows.first[rows.which[twice[0]]]} and {twice[0]} (and {len(twice) - 1} "
                f"more) have the same row id but different inputs for the teacher. An id must cover everything "
                f"that an input is made of, and encoding must not be random. Encode the data again"
            )

    def match(self, block: Block, rows: RowIndex, input_hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positions (k,) of requested rows in a block, and which distinct rows they are (k,).

        block: to search.
        rows: the index of the N requested rows.
        input_hashes: (N, 16) uint8 of those rows.

        Raises StoreError if the block has other input hashes.
        """
        which = rows.find(block.row_ids)
        at = np.flatnonzero(which >= 0)
        first = rows.first[which[at]]
        self._check_hashes(input_hashes[first], block.input_hashes[at], first, block.path)
        return at, which[at]

    def add(self, row_ids: np.ndarray, input_hashes: np.ndarray, logits: Sequence[np.ndarray] | np.ndarray) -> Path:
        """Store n rows as a block, unless this block exists already. Returns its path.

        row_ids: (n, 16) uint8.
        input_hashes: (n, 16) uint8.
        logits: n arrays (H, C) float16, or one (n, H, C).

        Raises ValueError for logits that are not finite or not float16, and for a row given twice.
        """
        row_ids, input_hashes = id_array(row_ids, "row ids"), id_array(input_hashes, "input hashes")
        if len(RowIndex(row_ids)) < len(row_ids):
            raise ValueError("a block holds each row once; `missing` returns the rows to add")
        self._start_writing()
        name = block_name(row_ids)
        if block := self._stored_now(name):
            self._check_hashes(input_hashes, block.input_hashes, np.arange(len(row_ids)), block.path)
        else:
            parts = block_parts(self.key.fingerprint, row_ids, input_hashes, logits)
            block = self._take_in(name, self._source.put(name, self.key.fingerprint, *parts))
        return block.path

    def note_use(self, by: str) -> None:
        """Record that the experiment `by` uses these logits now, so that people can decide what to remove.

        There is one file for each name, so no process waits for another. Only warns if the store cannot be written.
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

    def note_cost(self, rows: int, seconds: float) -> None:
        """Add what computing took, for reports of commands that find the logits here. Only warns if it cannot write.

        rows: that were computed.
        seconds: of compute, summed over the replicas.
        """
        before = self.cost()
        cost = {"rows": before["rows"] + rows, "compute_seconds": before["compute_seconds"] + seconds}
        try:
            self._start_writing()
            self.files.write(COST, (json.dumps(cost) + "\n").encode())
        except (OSError, Unreachable) as error:
            log.warning("%s: cannot note in %s what it cost: %s", self.key, self.files.where, error)

    def cost(self) -> dict[str, float]:
        """The sums of what `note_cost` was called with; 0 twice if the logits were computed by an older raykd."""
        try:
            saved = json.loads(self.files.read(COST))
            return {"rows": saved["rows"], "compute_seconds": saved["compute_seconds"]}
        except (OSError, ValueError, KeyError, TypeError, Unreachable):  # damaged: it is written again
            return {"rows": 0, "compute_seconds": 0.0}

    def _stored_now(self, name: str) -> Block | None:
        try:
            self.files.stamp(name, fresh=True)
        except FileNotFoundError:  # even if it was listed, because another process can have quarantined it
            return None
        return self.blocks.get(name) or self._open(name)

    def _open(self, name: str) -> Block | None:
        """Open a block; None if it is damaged, or was quarantined by another process since it was listed."""
        try:
            if self._unusable and self._unusable.get(name) == self.files.stamp(name):
                return None
            return self._take_in(name, self._source.open(name, self.key.fingerprint))
        except FileNotFoundError:
            return None
        except DamagedBlock as damage:
            self._quarantine(name, damage)
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
                f"another input hash: the teacher's input for the same row has changed, so the tokenizer's or the "
                f"library's preprocessing changed without its key changing. Go back to the versions that wrote "
                f"{self.files.where}, or delete that folder to compute it again"
            )

    def _quarantine(self, name: str, damage: DamagedBlock) -> None:
        self.damaged.append(damage.with_traceback(None))
        log.warning("%s: damaged block quarantined, its rows are computed again: %s", self.key, damage)
        try:
            self._unusable[name] = self.files.stamp(name)
            self.files.quarantine(name)
            del self._unusable[name]
        except FileNotFoundError:  # another process was faster
            self._unusable.pop(name, None)
        except (OSError, Unreachable) as error:  # a read-only store: the block is ignored until it changes
            log.warning("could not rename it: %s", error)

    def _start_writing(self) -> None:
        """Create the folder and the manifest, and delete the drafts of killed writers. Once per object."""
        if not self._writing:
            if not self.key.check_manifest(self.files):
                self.key.write_manifest(self.files)
            self.files.clear_stale()
            self._writing = True
