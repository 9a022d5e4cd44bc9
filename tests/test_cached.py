"""Commands on unchanged input: answered from the store, without what takes seconds to import or to start."""

import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny import reviews_job

from raykd.config.load import build
from raykd.search import sweep

HEAVY = ("torch", "transformers", "ray", "mlflow", "scipy", "matplotlib")
_COMMAND = """
import json, sys
from raykd.cli import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps([code, list(sys.modules)]))
"""


def raykd(folder: Path, *arguments: str) -> tuple[str, set[str]]:
    """Run a command in a process of its own. Returns what it prints and which of the HEAVY modules it imports."""
    found = folder / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(found), *arguments], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(found.read_text())
    assert code == 0, done.stderr
    return done.stdout, set(HEAVY) & set(modules)


def counts(output: Path) -> dict[str, int]:
    """Rows in the tables of the MLflow database, and files of runs, without the command's own run."""
    database = sqlite3.connect(output / "mlflow.db")
    own = "WHERE run_uuid NOT IN (SELECT run_uuid FROM tags WHERE key = 'raykd.role' AND value = 'experiment')"
    tables = {"metrics": own, "latest_metrics": own, "logged_models": "", "model_versions": ""}
    rows = {name: database.execute(f"SELECT count(*) FROM {name} {of}").fetchone()[0] for name, of in tables.items()}
    database.close()
    predictions = len(list((output / "mlartifacts").rglob("predictions-*.gz")))
    return rows | {"predictions": predictions}


def test_a_second_check_imports_neither_torch_nor_transformers_nor_ray(tmp_path):
    tree = reviews_job(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(tree))  # JSON is YAML, too
    first, _ = raykd(tmp_path, "check", str(tmp_path / "job.yaml"))
    second, imported = raykd(tmp_path, "check", str(tmp_path / "job.yaml"))
    assert first == second
    assert imported <= {"scipy"}, "which datasets imports to read parquet"


@pytest.mark.long  # tests/search/test_swept.py has a second sweep that reuses its runs
def test_a_second_sweep_starts_no_ray_and_writes_no_point_again(ray_cluster, tmp_path):
    search = {"trials": 1, "seeds": 1, "space": {"method.type": ["kd", "born_again"], "method.alpha": [0.5, 0.9]}}
    tree = reviews_job(tmp_path, search=search)
    tree["teachers"] = tree["teachers"][:1]
    (tmp_path / "job.yaml").write_text(json.dumps(tree))
    output = Path(tree["output"])
    sweep.run(build(tree), Console(file=io.StringIO()))
    written = counts(output)
    first = json.loads((output / tree["name"] / "results.json").read_text())

    said, imported = raykd(tmp_path, "sweep", str(tmp_path / "job.yaml"))
    assert imported == {"mlflow", "scipy"}, "the figures are those of the first sweep"
    assert "reused: finetune 1, label_smoothing 1, kd 1, born_again 1" in said
    assert counts(output) == written
    second = json.loads((output / tree["name"] / "results.json").read_text())
    assert second["runs"] == first["runs"], "also the same runs of MLflow"
    assert second["verdict"] == first["verdict"]
    assert second["mlflow"]["run_id"] != first["mlflow"]["run_id"]
