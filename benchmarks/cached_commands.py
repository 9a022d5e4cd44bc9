"""What a command on unchanged input costs: distill, sweep, report and check, each a second time.

    python benchmarks/cached_commands.py            # a few minutes more than one demo
    python benchmarks/cached_commands.py --quick    # within two minutes: fewer and shorter trainings, two repeats
    python benchmarks/cached_commands.py --output runs    # the demo's own folder, if `make demo` has filled it

Each is run as a user runs it, in turns with `python -c "import torch, transformers"`, to which every figure is a ratio:
what any program with a model pays before its first line. CPU seconds are those of the process and of the ones that it
waits for, and tell more than wall seconds on a machine that others use, too. The last line is one JSON object: by
command the medians [wall s, CPU s], the ratios of the medians to the bare import, and the lowest and highest ratio.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = [sys.executable, "-c", "import torch, transformers"]
QUICK = {
    "distill": ["training.steps=40", "student.seed=0"],
    "sweep": ["training.steps=40", "search.trials=1", "search.seeds=1", 'search.space={"method.type": ["kd"]}'],
}


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command. Returns its wall and its CPU seconds."""
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=None, help="default: 5, with --quick 2")
    parser.add_argument("--output", type=Path, help="a folder with finished runs, which are reused; default: a new one")
    given = parser.parse_args()
    repeats = given.repeats or (2 if given.quick else 5)
    with tempfile.TemporaryDirectory() as temporary:
        output = (given.output or Path(temporary)).resolve()
        more = {name: [f"output={output}", *(QUICK[name] if given.quick else [])] for name in QUICK}
        raykd = [sys.executable, "-m", "raykd"]
        commands = {
            "distill again": [*raykd, "distill", "jobs/digits.yaml", *more["distill"]],
            "sweep again": [*raykd, "sweep", "jobs/digits_sweep.yaml", *more["sweep"]],
            "report": [*raykd, "report", str(output / "digits_sweep")],
            "check": [*raykd, "check", "jobs/digits.yaml", *more["distill"]],
        }
        for name, command in commands.items():  # fills the store, if it is not filled yet
            print(f"{name}, the first time: {timed(command)[0]:.1f} s", flush=True)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bare import", *commands)}
        for _ in range(repeats):
            for name, command in {"bare import": BARE, **commands}.items():
                taken[name].append(timed(command))
    bare = [statistics.median(values) for values in zip(*taken["bare import"], strict=True)]
    summary: dict[str, object] = {"cores": os.cpu_count(), "repeats": repeats, "quick": given.quick}
    for name, times in taken.items():
        both = list(zip(*times, strict=True))
        medians = [statistics.median(values) for values in both]
        ratios = [median / one for median, one in zip(medians, bare, strict=True)]
        spread = [[min(values) / one, max(values) / one] for values, one in zip(both, bare, strict=True)]
        for unit, median, ratio, (low, high) in zip(("wall", "CPU"), medians, ratios, spread, strict=True):
            print(f"{name:>14}: {median:5.1f} s {unit:<4}  {ratio:4.2f} of a bare import ({low:.2f} to {high:.2f})")
        summary[name] = {
            "wall_and_cpu_s": [round(value, 2) for value in medians],
            "ratio": [round(value, 2) for value in ratios],
            "spread": [[round(value, 2) for value in ends] for ends in spread],
        }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
