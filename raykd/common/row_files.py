"""Raw and encoded rows on disk: written atomically, verified when opened, and written again if damaged."""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset

from raykd.common import proof
from raykd.common.atomic import new_folder, quarantine, remove_stale
from raykd.common.errors import StoreError
from raykd.common.locks import held
from raykd.common.output_files import PROOF
from raykd.common.shared_files import seen
from raykd.common.units import counted

_BATCH_BYTES = 2**25  # of rows in one Arrow record batch


def open_rows(folder: Path) -> Dataset:
    """Open rows that `save_rows` wrote. Each process verifies each file's checksum once.

    Raises StoreError if they are missing or damaged; the next command writes them again.
    """
    seen(folder / PROOF)
    reason = damage(folder)
    if not reason:
        rows = _opened(folder, (folder / PROOF).stat().st_mtime_ns)
        if len(rows) == (expected := json.loads((folder / PROOF).read_text())["rows"]):
            return rows
        reason = f"it has {counted(len(rows), 'row')} instead of {expected}"
    raise StoreError(f"{folder}: {reason}. Start the command again: it writes these rows again")


@functools.lru_cache(maxsize=32)
def _opened(folder: Path, written: int) -> Dataset:
    """Opening a folder takes ten milliseconds, and a training opens each of its splits several times.

    written: when; what is written again is opened again.
    """
    return datasets.load_from_disk(str(folder))


def ensure_rows(folder: Path, make: Callable[[Path], Dataset]) -> None:
    """Write the rows that `make` returns, unless the folder already holds them. Damaged rows are quarantined first.

    make: takes a folder for temporary files, which is deleted once the rows are written.
    """
    if folder.exists() and damage(folder):
        with held(folder.with_name(f"{folder.name}.lock"), "replace damaged rows"):
            if folder.exists() and (reason := damage(folder)):  # checked again: another command can have done this
                quarantine(folder, reason)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as scratch:
            save_rows(make(Path(scratch)), folder)


def save_rows(rows: Dataset, folder: Path) -> None:
    """Write the rows and their proof. If another process was faster, its rows stay, because they are the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    with new_folder(folder) as draft:
        rows.save_to_disk(str(draft))
        for file in draft.glob("*.arrow"):
            _in_large_batches(file)
        files = proof.proof_of(draft, draft.iterdir())
        (draft / PROOF).write_text(json.dumps({"rows": len(rows), "files": files}, indent=1))


def damage(folder: Path) -> str:
    """Why the folder does not hold all the rows that were written to it; "" if it does."""
    try:
        files = json.loads((folder / PROOF).read_text())["files"]
        return proof.damage(folder, files)
    except FileNotFoundError:
        return f"no {PROOF} says which rows it must hold" if folder.exists() else "there is no such folder"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{PROOF} cannot be read"


def _in_large_batches(file: Path) -> None:
    """Rewrite an Arrow file of `datasets`, which puts only 100 rows into a batch if a column is bytes, like the hashes.

    Each batch costs at least 25 us when rows are opened or columns are selected, which a teacher does for each block.
    """
    whole = file.with_suffix(".whole")
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
        count = max(1, len(table) * _BATCH_BYTES // max(1, table.nbytes))
        with pa.OSFile(str(whole), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            for start in range(0, len(table), count):
                writer.write_table(table.slice(start, count).combine_chunks(), count)
    os.replace(whole, file)
