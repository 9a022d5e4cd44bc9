"""The store: writing and opening blocks, what a replica checks before each, a student's reader; many files."""

import inspect
import os
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from made_up import BLOCK_ROWS, made_encoded, served
from measure import MILLION, apart, forget_peak, listed, memory, say, seconds

from raykd.common.hashing import digest
from raykd.common.row_files import save_rows
from raykd.data.encoding import Encoded, id_column
from raykd.logits import LogitStore, TeacherLogits
from raykd.logits.local import LocalFiles
from raykd.training.teacher_logits import open_logits


def write_blocks(store: Path, ids: np.ndarray, hashes: np.ndarray) -> float:
    """Seconds per block, written as by a replica."""
    teacher = TeacherLogits(store, served().key)
    since, blocks = time.perf_counter(), range(0, len(ids), BLOCK_ROWS)
    for start in blocks:
        part = slice(start, start + BLOCK_ROWS)
        teacher.add(ids[part], hashes[part], np.zeros((len(ids[part]), 1, 2), np.float16))
    return (time.perf_counter() - since) / len(blocks)


def replica_check(store: Path, seed: int) -> dict[str, float]:
    """The time to open the store, and a replica's time before it computes a block, if it lists the blocks.

    check_ms: a replica's check for new blocks, which skips those of its own pool.
    check_all_ms: the same without skipping, as if all blocks were written by other commands.
    """
    since = time.process_time()
    whole = TeacherLogits(store, served().key)
    found = {"open_first_s": time.process_time() - since}
    replica = whole
    if "passing_over" in inspect.signature(TeacherLogits).parameters:  # otherwise an older raykd is measured
        replica = TeacherLogits(store, served().key, [*whole.blocks])
    rng = np.random.default_rng(seed)
    for name, teacher in (("check_ms", replica), ("check_all_ms", whole)):
        new = [rng.integers(0, 256, (BLOCK_ROWS, 16), dtype=np.uint8) for _ in range(5)]
        found[name] = 1000 * float(np.median([seconds(partial(teacher.missing, ids, ids)) for ids in new]))
    return found | {"list_ms": 1000 * seconds(whole.files.names, 5)}


def reader(store: Path, encoded: Encoded, teachers: int) -> dict[str, float]:
    """A student's reader, opened as by `raykd.training.loop` after another training in the same process."""
    stored = [SimpleNamespace(key=served().key, rows=(encoded.folder,)) for _ in range(teachers)]
    job: Any = SimpleNamespace(
        method=SimpleNamespace(distils=True), live=False, teachers=stored, logits=LogitStore.at(store)
    )
    rows = encoded.open()
    open_logits(job, rows)
    before, own = forget_peak(), memory("RssAnon")
    since = time.process_time()
    opened = open_logits(job, rows)
    found = {"open_s": time.process_time() - since}
    assert opened is not None
    assert opened.complete
    n = len(opened)
    found["kept_mb"] = (memory("RssAnon") - own) / 1e6 / n * MILLION
    found["peak_mb"] = (memory("VmHWM") - before) / 1e6 / n * MILLION
    rng = np.random.default_rng(0)
    found["batch_us"] = 1e6 * seconds(lambda: opened[rng.integers(0, n, 32)], 200)
    return found


def listing(folder: Path, files: int) -> float:
    """Milliseconds to list a teacher's folder."""
    place = folder / f"listed-{files}"
    place.mkdir()
    for i in range(files):
        (place / f"{digest(b'%d' % i).hex()}.block").touch()
    return 1000 * seconds(LocalFiles(place).names, 5)


def mapping(folder: Path, blocks: int) -> dict[str, Any]:
    """How many blocks one process can map, and the error then. The blocks are links to one file, which all count."""
    files = TeacherLogits(folder / "maps", served().key)
    ids = np.random.default_rng(0).integers(0, 256, (2, 16), dtype=np.uint8)
    block = files.add(ids, ids, list(np.zeros((2, 1, 2), np.float16)))
    for i in range(blocks):
        copy = block.with_name(f"{digest(b'%d' % i).hex()}.block")
        if i % 60_000 == 0:  # ext4 allows 65,000 links to a file
            shutil.copy(block, copy)
            source = copy
        else:
            os.link(source, copy)
    said = ""
    since = time.process_time()
    try:
        files.refresh(always=True)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    mapped = len(files.blocks)
    files.blocks.clear()
    return {"asked": blocks, "mapped": mapped, "seconds": time.process_time() - since, "said": said}


def part(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    store, done = folder / "store", 0
    sizes = (20_480, 40_960) if quick else (MILLION, 3 * MILLION)
    whole = made_encoded(folder, sizes[-1]).open()
    ids, hashes = id_column(whole, "row_id"), id_column(whole, "input_hash")
    for rows in sizes:
        place = folder / f"first-{rows}"
        save_rows(whole.select(range(rows)), place)
        add = write_blocks(store, ids[done:rows], hashes[done:rows])
        done = rows
        got = {"add_ms": 1000 * add} | apart(replica_check, store, rows)
        say(f"a store of {rows:,} rows: {listed(got)}")
        found[str(rows)] = got
        for teachers in (1, 3):
            read_by = apart(reader, store, Encoded(place, ""), teachers)
            say(f"a student's reader of {rows:,} rows, {teachers} teacher(s): {listed(read_by)} (MB a million rows)")
            found[f"{rows}_{teachers}"] = read_by
    folder_sizes = (1000, 4000) if quick else (10_000, 40_000)
    found["list_ms"] = {str(n): listing(folder, n) for n in folder_sizes}
    say(f"to list a folder of so many blocks, ms: {listed(found['list_ms'])}")
    found["maps"] = apart(mapping, folder, 500 if quick else 66_000)
    say(f"blocks that one process maps: {found['maps']}")
    return found
