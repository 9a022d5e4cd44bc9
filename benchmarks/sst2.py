"""SST-2 as encoded for MiniLM, which several benchmarks read, and the arguments that say where both are."""

import argparse
from pathlib import Path

from raykd.config.load import load
from raykd.plan.prepare import Prepared, prepare

JOB = Path(__file__).parents[1] / "jobs" / "sst2_minilm.yaml"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--data` and `--model`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    return parser


def prepared_sst2(given: argparse.Namespace, output: str) -> Prepared:
    """output: a folder for the encoded rows, which are mapped from it."""
    models = [f"teachers.*.model={given.model}", f"student.model={given.model}"]
    return prepare(load(str(JOB), [f"data.source={given.data}", f"output={output}", *models]))
