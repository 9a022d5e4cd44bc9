"""A sweep on one logical GPU, whose first trial with teachers finds no memory on it. Run by a test, with a folder.

A process of its own, because a test's Ray has no GPU.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from mlflow import MlflowClient
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from tiny import reviews_job

from raykd.cluster.resources import Resources
from raykd.config.load import build
from raykd.experiment.on_worker import on_worker
from raykd.plan.own_functions import code_of
from raykd.plan.prepare import prepare
from raykd.search import sweep
from raykd.search.journal import NAME
from raykd.search.space import Space
from raykd.training.access import Training
from raykd.training.events import Restarted
from raykd.training.gpu_use import GpuUse
from raykd.training.launch import run_trainings

MODULE = """
from pathlib import Path

import torch

MARKER = Path({marker!r})


def full(logits, labels, mask):
    if MARKER.exists():
        MARKER.unlink()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    return torch.ones(logits.shape[:3])
"""


def process_of(_: None) -> int:
    return os.getpid()


def main(folder: Path) -> None:
    marker = folder / "full"
    (folder / "crowded.py").write_text(MODULE.format(marker=str(marker)))
    sys.path.insert(0, str(folder))
    tree = reviews_job(folder, search={"trials": 1, "seeds": 1})
    tree["teachers"] = [tree["teachers"][0] | {"num_gpus": 0}]
    tree["student"]["num_gpus"] = "auto"
    tree["method"] = {"type": "weighted", "weighting": "crowded:full"}
    tree["search"]["space"] = {"training.learning_rate": {"grid": [0.005]}}
    tree["tracking"] = {"serving_cost": False}
    config = build(tree)
    measured: list[float] = []
    used: list[Training] = []

    def measure(training: Training, *_: object) -> GpuUse:
        measured.append(training.resources.num_gpus)
        used.append(training)
        marker.touch()
        return GpuUse(10**9, 80 * 10**9, 0.5)

    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    sweep.run(config, Console(width=400), measure=measure)

    states = {}
    for line in (config.folder / NAME).read_text().splitlines():
        if line and (trial := json.loads(line).get("trial")):
            states[f"{trial['arm']} {trial['number']}"] = trial["state"]

    known = json.loads((config.folder / "results.json").read_text())["mlflow"]
    runs = MlflowClient(known["uri"]).search_runs([known["experiment_id"]], "tags.`raykd.role` = 'trial'")
    ratios = {r.info.run_name: r.data.metrics["gpu_seconds"] / r.data.metrics["seconds"] for r in runs}

    # A training on fresh seeds, which is not one of Tune's.
    marker.touch()
    [training] = used
    code = code_of(config.method, prepare(config).code)
    job = dataclasses.replace(training.job, method=config.method, code=code, seed=100)
    again: list[str] = []
    shared = Training(job, training.resources.sharing(2))
    failed = run_trainings(
        [shared], config.ray, lambda _, e: again.append(e.reason) if isinstance(e, Restarted) else None
    )
    work: Any = SimpleNamespace(config=config, start_ray=lambda: None)
    whole = Resources(workers=1, num_cpus=1, num_gpus=1)
    processes = {on_worker(work, whole, process_of, None, 300) for _ in range(2)}
    planned = sum(map(Space(config).trials, Space(config).arms))
    print(
        json.dumps(
            {
                "measured": measured,
                "states": states,
                "planned": planned,
                "shares": {name: round(share, 4) for name, share in ratios.items()},
                "again": again,
                "processes": len(processes),
                "failed": sorted(failed),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
