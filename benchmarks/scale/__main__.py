"""What reaches its limit first at 100 replicas, 1,000 trials and 10 million rows: the costs of units, and a model.

    python benchmarks/scale [--quick] [--only rows index store pool gcs mlflow]

All costs are of raykd's own code on this machine, at two or three sizes each, to detect costs that grow faster than the
size. Times of a single process are CPU time; where disks, servers or actors are involved, wall-clock time. Memory is
measured in a process of its own. The teachers sleep instead of computing, so the queue is measured and not a model. The
logits have one decision over two classes, the smallest possible, so that costs per row and per file are not hidden by
costs per byte.

- rows: reading, identifying and encoding raw rows.
- index: encoded rows: their ids, the blocks to compute (in the driver), the rows of a block (in a replica).
- store: writing and opening blocks, what a replica checks before each, a student's reader, folders of many files, and
  how many blocks a process can map.
- pool: the driver's thread, per block, with an increasing number of replicas.
- gcs: creating and naming actors; the directory of live teachers.
- mlflow: the cost of a trial in the driver on sqlite, on a server over sqlite and over PostgreSQL (if Debian's is
  installed); the report of 1,000 trials.

The cost of a trial in Tune, the sweep's state and the journal is in `sweep.py` (driver_mb_per_1000_trials,
scheduling_ms). The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raykd.common.environment import set_environment

set_environment()  # before Ray is imported
TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
sys.path += [str(TESTS), str(TESTS / "cluster")]  # tiny models, made-up sweeps, servers

import gcs  # noqa: E402
import index  # noqa: E402
import mlflow_runs  # noqa: E402
import model  # noqa: E402
import pool  # noqa: E402
import rows  # noqa: E402
import store  # noqa: E402
from measure import say  # noqa: E402

PARTS = {
    "rows": rows.part,
    "index": index.part,
    "store": store.part,
    "pool": pool.part,
    "gcs": gcs.part,
    "mlflow": mlflow_runs.part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, help="some parts")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean nothing")
    given = parser.parse_args()
    versions = {name: __import__(name).__version__ for name in ("ray", "datasets", "numpy", "pyarrow", "torch")}
    versions["mlflow"] = __import__("importlib.metadata").metadata.version("mlflow")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}", flush=True)
    found: dict[str, Any] = {}
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in given.only or PARTS:
        since = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HF_DATASETS_CACHE"] = f"{folder}/hf"
            print(f"{name} (load {os.getloadavg()[0]:.1f})", flush=True)
            found[name] = PARTS[name](Path(folder), given.quick)
        print(f"  {time.perf_counter() - since:.0f} s", flush=True)
    shares = [] if given.quick else model.shares(found)
    if shares:
        print(model.SCALE)
    for part, cost, share, limit in shares:
        say(f"{part:52} | {cost:78} | {share:7.1%} | {limit}")
    found["model"] = shares
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "versions": versions} | found))


if __name__ == "__main__":
    main()
