"""MLflow's own pages of a sweep, in a real browser."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow_server import mlflow_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine (Debian's package: chromium)"
)
OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"


def rendered(address: str, folder: Path) -> str:
    """The page's HTML once its scripts have run."""
    assert CHROMIUM is not None
    call = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *OFFLINE.split(), "--window-size=1600,2000"]
    call += [f"--user-data-dir={folder}", "--virtual-time-budget=60000", "--dump-dom", address]
    found = subprocess.run(call, capture_output=True, text=True, timeout=240, check=True)
    return found.stdout


def test_comparison_of_trials(swept, tmp_path):
    """Parallel coordinates of all finished trials, coloured by a validation score, over what differs; no error."""
    trials = [run for run in swept.roles["trial"] if run.info.status == "FINISHED"]
    ids, experiments = [run.info.run_id for run in trials], [swept.results["mlflow"]["experiment_id"]]
    with mlflow_server(swept.folder / "runs" / "mlflow.db", tmp_path) as address:
        query = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(experiments))}"
        page = rendered(f"{address}/#/compare-runs?{query}", tmp_path / "browser")
        overview = rendered(f"{address}/#/experiments/{experiments[0]}", tmp_path / "browser")
    assert f"Comparing {len(trials)} Runs from 1 Experiment" in page
    assert "Something went wrong" not in page
    for axis in ("method.alpha", "validation/accuracy"):  # what differs, and the score that it is coloured by
        assert f">{axis}</text>" in page
    assert "kd 1" in page or "kd 2" in page
    assert "Traces" not in overview or "Training runs" in overview
    assert "reviews" in overview
