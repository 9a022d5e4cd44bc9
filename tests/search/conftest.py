"""One real sweep, which several tests look at."""

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny import reviews_job

from raykd.config.load import build
from raykd.search import sweep

SEARCH = {
    "trials": 2,
    "seeds": 2,
    "concurrency": 2,
    "space": {
        "method.type": ["kd", "weighted"],
        "method.W": [0.25, 0.5],
        "method.alpha": {"uniform": [0.5, 1.0]},
        "training.learning_rate": {"grid": [0.005, 1e30]},
    },
}


@pytest.fixture(scope="session")
def swept(ray_cluster, tmp_path_factory) -> SimpleNamespace:
    """A sweep in which every second trial diverges, and its MLflow store."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("sweep")
    tree = reviews_job(folder, search=SEARCH)
    tree["training"] |= {"max_grad_norm": 1e30}
    said = Console(file=io.StringIO(), width=200)
    scored = sweep.run(build(tree), said)
    results = json.loads((folder / "runs" / "reviews" / "results.json").read_text())
    client = MlflowClient(results["mlflow"]["uri"])
    children = client.search_runs(
        [results["mlflow"]["experiment_id"]],
        f"tags.`mlflow.parentRunId` = '{results['mlflow']['run_id']}'",
        max_results=1000,
    )
    roles: dict[str, list[Any]] = {}
    for run in children:
        roles.setdefault(run.data.tags["raykd.role"], []).append(run)
    return SimpleNamespace(
        folder=folder, tree=tree, text=said.file.getvalue(), scored=scored, results=results, client=client, roles=roles
    )
