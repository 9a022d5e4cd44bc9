"""Real processes that write at the same time, and real processes that are killed."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_up_logits import ids, inputs, key, logits, write_blocks
from teacher_rows import TeacherRows

from raykd.logits import TeacherLogits

ROWS = 120


def write(store: Path, barrier, block: int, reverse: bool) -> None:
    teacher = TeacherLogits(store, key())
    rows = range(ROWS)[::-1] if reverse else range(ROWS)
    for start in range(0, ROWS, block):
        part = rows[start : start + block]
        barrier.wait(20)  # each block at the same moment
        teacher.add(ids(part), inputs(part), [logits(r) for r in part])


@pytest.mark.parametrize("reverse", [False, True], ids=["same blocks", "overlapping blocks"])
def test_two_writers_at_once(tmp_path, reverse):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    block = 7  # does not divide ROWS: read from the other end, the blocks are cut elsewhere
    writers = [spawn.Process(target=write, args=(tmp_path, barrier, block, r)) for r in (False, reverse)]
    for writer in writers:
        writer.start()
    reader = TeacherLogits(tmp_path, key())
    while any(w.is_alive() for w in writers):  # a reader sees whole blocks only, all the while
        rows = np.setdiff1d(np.arange(ROWS), reader.missing(ids(range(ROWS)), inputs(range(ROWS))))
        for row, value in zip(rows, TeacherRows(reader, ids(rows), inputs(rows)), strict=True):
            np.testing.assert_array_equal(value, logits(row))
    for writer in writers:
        writer.join(20)
    assert [w.exitcode for w in writers] == [0, 0]
    after = TeacherLogits(tmp_path, key())
    assert reader.damaged == after.damaged == []
    assert len(after.blocks) == -(-ROWS // block) * (1 + reverse)
    for row, value in enumerate(TeacherRows(after, ids(range(ROWS)), inputs(range(ROWS)))):
        np.testing.assert_array_equal(value, logits(row))
    assert [p.name for p in after.files.path.iterdir() if not p.name.endswith(".block")] == ["manifest.json"]


# Stops for good in the middle of the writing of a file: before its first, second or third part, before it is renamed.
STOP_IN_WRITE = """
import os, sys, time, pathlib
sys.path.insert(0, sys.argv[1])
from made_up_logits import *
from raykd.common import atomic as files
store, where = pathlib.Path(sys.argv[2]), sys.argv[3]
teacher = TeacherLogits(store, key())
def stop(*_):
    print("in the middle", flush=True)
    time.sleep(60)
if where == "replace":
    files.os.replace = stop
else:
    real, parts = pathlib.Path.open, int(where)
    class Halting:
        def __init__(self, file): self.file, self.left = file, parts
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def write(self, part):
            if self.left == 0:
                self.file.write(bytes(part)[: len(part) // 2])
                self.file.flush()
                stop()
            self.left -= 1
            return self.file.write(part)
    def halting(path, mode="r", *a, **k):
        return Halting(real(path, mode, *a, **k)) if mode == "xb" else real(path, mode, *a, **k)
    pathlib.Path.open = halting
write_blocks(teacher, range(20, 40), block=20)
"""


@pytest.mark.parametrize("where", ["0", "1", "2", "replace"])
def test_a_writer_killed_in_the_middle_leaves_no_block(tmp_path, where):
    before = write_blocks(TeacherLogits(tmp_path, key()), range(20), block=20)
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", STOP_IN_WRITE, here, str(tmp_path), where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "in the middle\n"
        finally:
            writer.send_signal(signal.SIGKILL)
    folder = before[0].parent
    assert len([p for p in folder.iterdir() if p.name.endswith(".tmp")]) == 1  # it was killed in the middle
    teacher = TeacherLogits(tmp_path, key())
    assert [b.path for b in teacher.blocks.values()] == before
    assert teacher.damaged == []
    assert teacher.missing(ids(range(40)), inputs(range(40))).tolist() == list(range(20, 40))
    write_blocks(teacher, range(40), block=20)
    for row, value in enumerate(TeacherRows(teacher, ids(range(40)), inputs(range(40)))):
        np.testing.assert_array_equal(value, logits(row))


WRITE_FOR_EVER = """
import sys, pathlib, itertools
sys.path.insert(0, sys.argv[1])
from made_up_logits import *
teacher = TeacherLogits(pathlib.Path(sys.argv[2]), key())
print("started", flush=True)
for start in itertools.count(0, 4):
    write_blocks(teacher, range(start, start + 4), h=2, c=20000)
"""


def test_a_writer_killed_at_any_time_leaves_whole_blocks(tmp_path):
    here = str(Path(__file__).parents[1])
    for delay in (0.05, 0.11, 0.23):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, here, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout.readline() == "started\n"
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        teacher = TeacherLogits(tmp_path, key())
        assert teacher.damaged == []
    rows = np.arange(4 * len(teacher.blocks))  # written in order: no gaps
    assert len(rows) > 0
    for row, value in zip(rows[::17], TeacherRows(teacher, ids(rows), inputs(rows))[::17], strict=True):
        np.testing.assert_array_equal(value, logits(row, h=2, c=20000))
