"""One experiment on several hosts: two teachers on a node of theirs, a student of two workers on two others."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from processes import LIMIT, until
from tiny import reviews_job, save_tokenizer, write_reviews

STEPS = 60
ROWS = 3000  # enough that the precomputation lasts a while


def write_job(folder: Path, output: Path, **changes: Any) -> Path:
    """The same experiment whatever `output` is: its results are to be equal."""
    tree = reviews_job(folder)
    write_reviews(folder / "data", ROWS + 60)
    tree["output"] = str(output)
    tokenizer = str(save_tokenizer(output / "tokenizer"))  # models that are given as a folder are read on every node
    for member in (*tree["teachers"], tree["student"]):
        member["model"] = member["model"] | {"tokenizer": tokenizer}
    tree["data"] |= {"train": f"train[:{ROWS}]", "validation": f"train[{ROWS}:{ROWS + 20}]"}
    tree["data"] |= {"test": f"train[{ROWS + 20}:]"}
    tree["training"] |= {"steps": STEPS, "eval_every": 5}
    for teacher in tree["teachers"]:
        teacher |= {"node_labels": {"pool": "teachers"}}
        teacher["recipe"]["training"] = {"steps": 10}
    tree["student"] |= {"workers": 2, "node_labels": {"pool": "students"}}
    tree |= {"baseline": False, "method": {"type": "weighted", "W": 0.5}}
    tree["logits"] = {"block_rows": 32} | changes.get("logits", {})
    tree["ray"] = {"wait_s": 60, "timeout_s": LIMIT}  # the cluster grows: a lost node comes again
    output.mkdir(parents=True, exist_ok=True)
    path = output / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Experiment:
    """`raykd distill` on a cluster, in a process of its own; what it says is in a file."""

    def __init__(self, job: Path, gcs: str, environment: dict[str, str]) -> None:
        self.said, self.output = job.with_suffix(".log"), Path(yaml.safe_load(job.read_text())["output"])
        given = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": gcs, **environment}
        with self.said.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raykd", "distill", str(job)], stdout=log, stderr=subprocess.STDOUT, env=given
            )

    @property
    def text(self) -> str:
        return self.said.read_text()

    def until_it_says(self, pattern: str) -> str:
        """What the pattern's group has found."""

        def found() -> Any:
            if match := re.search(pattern, self.text, re.MULTILINE):
                return match
            assert self.process.poll() is None, self.text
            return None

        return until(found)[0]

    def results(self) -> dict[str, Any]:
        """At its end: every run's metrics, by name."""
        self.process.wait(LIMIT)
        assert self.process.returncode == 0, self.text
        found = json.loads((self.output / "reviews" / "results.json").read_text())
        return {run["name"]: run["metrics"] for run in found["runs"]}
