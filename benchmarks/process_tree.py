"""Memory of a process with all of its descendants, from /proc (Linux)."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path


def peak_mb(command: list[str]) -> int | None:
    """Peak memory of a command's processes, sampled five times a second. None if the command fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _mb(process.pid))
            time.sleep(0.2)
        if process.returncode:
            log.seek(0)
            print(f"{command} failed: {log.read().decode()[-2000:]}", file=sys.stderr)
    return None if process.returncode else peak


def _mb(root: int) -> int:
    """Each process counts its share of the memory that several use (proportional set size)."""
    total = 0
    for pid in _tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 // 1_000_000


def _tree(root: int) -> set[int]:
    """The ids of a process and its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found
