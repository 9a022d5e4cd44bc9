"""The address that a command prints at its end, in a real browser: MLflow's page of the experiment's runs."""

import shutil

import pytest
from browser import needs_browser, rendered
from made_up_sweep import Sweep
from mlflow_server import mlflow_server

from raykd.tracking.mlflow_store import runs_page


@pytest.mark.slow
@needs_browser
def test_it_shows_runs_and_their_metrics(migrated_store, tmp_path):
    database = tmp_path / "mlflow.db"
    shutil.copy(migrated_store, database)
    sweep = Sweep(f"sqlite:///{database}", "digits")
    sweep.child("kd 1", "trial", "kd").finish()
    sweep.parent.log({"final_test/accuracy": 0.8125}, 0)  # as the winner's on a real sweep
    sweep.parent.finish()
    page = runs_page(sweep.tracking.experiment_id)
    with mlflow_server(database, tmp_path) as address:
        table = rendered(f"{address}/{page}", tmp_path / "browser")
        charts = rendered(f"{address}/{page}&compareRunsMode=CHART", tmp_path / "browser")
    for shown in (table, charts):
        assert "digits sweep" in shown
        assert "matching runs" in shown, "it is the page of runs, not of GenAI's traces"
        assert "Something went wrong" not in shown
    assert "final_test/accuracy" in charts
    assert "0.81" in charts
