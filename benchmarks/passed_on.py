"""Trainings on a GPU in processes that are passed on, compared with a process for each.

    python benchmarks/passed_on.py [--quick]

Short trainings of a small ViT on the built-in digits, one at a time, in turns: passed on, apart, apart, passed on, and
so on. Nearly all of the time is that of the processes: their imports, and CUDA's own start. Without a GPU it is a
logical one of Ray's, so the trainings compute on the CPU.

The last line is one JSON object. passed_on_share: seconds passed on / seconds apart, the median over the rounds.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import ray
import torch

from raykd.cluster.resources import Resources
from raykd.config.load import load
from raykd.plan.job import Job
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.training import tries
from raykd.training.access import Training
from raykd.training.events import Done, Event, Started
from raykd.training.launch import run_trainings

JOB = Path(__file__).parents[1] / "jobs" / "digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=4, help="of each round and side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, within two minutes")
    given = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, a logical GPU"
    print(f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}", flush=True)

    seconds: dict[str, list[float]] = {"passed on": [], "apart": []}
    ray.init(num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        for number in range(1 if given.quick else given.rounds):
            for kind in list(seconds)[:: 1 if number % 2 == 0 else -1]:
                with (
                    tempfile.TemporaryDirectory() as output,
                    patch.object(tries, "_PASSED_ON_SECONDS", float("inf") if kind == "passed on" else float("-inf")),
                ):
                    seconds[kind].append(trained(output, given.trainings, given.steps))
                print(f"  {kind}: {seconds[kind][-1]:.1f} s", flush=True)
    finally:
        ray.shutdown()
    shares = np.array(seconds["passed on"]) / np.array(seconds["apart"])
    print(f"  passed on / apart: {np.median(shares):.3f} ({shares.min():.3f} to {shares.max():.3f})")
    print(
        json.dumps(
            {
                "passed_on_share": float(np.median(shares)),
                "passed_on_share_range": [float(shares.min()), float(shares.max())],
                "device": machine,
                "seconds": seconds,
            }
        )
    )


def trained(output: str, count: int, steps: int) -> float:
    """Seconds from the first training's start to the last one's end."""
    seeds = f"student.seed={[*range(count)]}"
    config = load(JOB, [f"output={output}", seeds, f"training.steps={steps}", "student.num_gpus=1"])
    jobs = student_jobs(config, prepare(config), FINETUNE, ())
    times: list[float] = []

    def on_event(job: Job, event: Event) -> None:
        if isinstance(event, Started | Done):
            times.append(time.monotonic())

    failed = run_trainings([Training(job, Resources.of(config.student, 1)) for job in jobs], config.ray, on_event)
    assert not failed, failed
    return times[-1] - times[0]


if __name__ == "__main__":
    main()
