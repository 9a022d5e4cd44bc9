"""Memory and CPU time of a process with all of its descendants, from /proc (Linux)."""

import os
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


def cpu_seconds(root: int) -> float:
    """User and system time so far, with that of children that have ended and were waited for."""
    ticks = sum(sum(map(int, fields[11:15])) for pid, fields in _tree(root).items())
    return ticks / os.sysconf("SC_CLK_TCK")


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


def _tree(root: int) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, of a process and its descendants."""
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
    found = {root}
    while more := {pid for pid, fields in stats.items() if int(fields[1]) in found} - found:
        found |= more
    return {pid: stats[pid] for pid in found if pid in stats}
