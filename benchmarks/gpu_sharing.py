"""A sweep whose trials share a GPU (`student.num_gpus: auto`), compared with one trial at a time on each GPU.

    python benchmarks/gpu_sharing.py --data PATH_OR_HUB_ID --model PATH_OR_HUB_ID [--quick]

12 distilled trials of MiniLM on SST-2, in turns: alone, shared, shared, alone, and so on. The time is that of the
trials, with the start of their processes and, where they are shared, with the training that is measured first; the
logits of the teacher are stored before. Without a GPU `auto` changes nothing, so that both sides are the same: a smoke
run.

The last line is one JSON object. shared_speedup: seconds alone / seconds shared, the median over the rounds.
"""

import argparse
import io
import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from raykd.cluster.running import cluster_gpus
from raykd.experiment.command import cluster
from sweep import Bench, save_teachers, tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, help="of each trial; default 2000, on a CPU 6")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of short trials, within two minutes")
    given = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    steps = given.steps or (6 if not on_gpu else 90 if given.quick else 2000)
    trials, rounds = (given.trials if on_gpu else 2, 1) if given.quick else (given.trials, given.rounds)
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, no GPU: a smoke run"
    print(f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}, {trials} trials of {steps} steps", flush=True)

    seconds: dict[str, list[float]] = {"alone": [], "shared": []}
    said: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = tree(given.data, given.model, folder, steps, trials, 1)
        settings["training"] |= {"precision": "auto"}
        save_teachers(given.model, folder, settings, 1)
        sizes = {"alone": 1 if on_gpu else None, "shared": "auto"}
        benches = {}
        for kind, size in sizes.items():
            benches[kind] = Bench(settings | {"name": kind, "student": settings["student"] | {"num_gpus": size}})
            benches[kind].config.folder.mkdir(parents=True, exist_ok=True)
        first = benches["alone"]
        with cluster(first.config, first.sweep.prepared, first.console, "sweep") as start_ray:
            start_ray()
            gpus = cluster_gpus()
            for number in range(rounds):
                for kind in list(benches)[:: 1 if number % 2 == 0 else -1]:
                    benches[kind].console = Console(file=(text := io.StringIO()), width=400)
                    _, searched, _ = benches[kind].explore(number > 0 or kind == "shared", None, gpus)
                    seconds[kind].append(searched)
                    said |= {
                        line
                        for line in text.getvalue().splitlines()
                        if any(word in line for word in ("num_gpus", "memory", "precision"))
                    }
                    print(f"  {kind}: {searched:.1f} s", flush=True)
    for line in sorted(said):
        print(f"  {line}")
    speedups = np.array(seconds["alone"]) / np.array(seconds["shared"])
    print(f"  alone / shared: {np.median(speedups):.2f} ({speedups.min():.2f} to {speedups.max():.2f})")
    print(
        json.dumps(
            {
                "shared_speedup": float(np.median(speedups)),
                "shared_speedup_range": [float(speedups.min()), float(speedups.max())],
                "device": machine,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
