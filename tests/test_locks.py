"""A lock that another process holds."""

import logging
import subprocess
import sys

import pytest

from raykd.common import locks
from raykd.common.errors import StoreError
from raykd.common.locks import held

HOLD = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_wait_for_a_lock_is_logged_and_limited(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_SILENT_SECONDS", 0.1)
    path = tmp_path / "a" / "lock"
    path.parent.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            caplog.at_level(logging.INFO, "raykd"),
            pytest.raises(StoreError, match=r"a/lock.*0.2 s.*to count"),
            held(path, "to count".removeprefix("to "), 0.2, StoreError),
        ):
            pass
        assert [str(path) in record.getMessage() for record in caplog.records] == [True]
        holder.stdin.close()
        with held(path, "count"):  # free again, and nothing is said
            pass
    caplog.clear()
    with held(path, "count"):
        assert not caplog.records
