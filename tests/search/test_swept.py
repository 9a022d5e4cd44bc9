"""One real sweep, from every side: its trials, what is trained again, its runs, and MLflow's own pages of it."""

import io
import json
import sqlite3
from typing import Any
from urllib.parse import quote

import pytest
from browser import needs_browser, rendered
from mlflow_server import mlflow_server
from rich.console import Console

from raykd.config.load import build
from raykd.reports.analysis import analyze, leaderboard
from raykd.reports.conclusion import conclusion
from raykd.reports.read import read
from raykd.search import sweep


def test_one_teacher_pass_for_all(swept):
    """120 rows, asked once of each teacher, whatever the trials."""
    assert swept.text.count("120 computed") == 2
    stores = list((swept.folder / "runs" / "store" / "logits").iterdir())
    assert len(stores) == 2


def test_trials_of_every_method_and_their_failures(swept):
    """Each arm has two settings here, its learning rates for those that have no alpha."""
    arms = ["finetune", "label_smoothing", "kd from a", "kd from b", "kd", "weighted"]
    lines = (swept.folder / "runs" / "reviews" / "sweep.jsonl").read_text().splitlines()
    noted = {e["arm"] + f" {e['number']}": e for e in (json.loads(line).get("trial") for line in lines if line) if e}
    trials = {run.data.tags["mlflow.runName"]: run for run in swept.roles["trial"]}
    assert sorted(trials) == sorted(f"{arm} {i}" for arm in arms for i in (1, 2))
    for run in trials.values():
        diverged = run.data.params["training.learning_rate"] == "1e+30"
        assert run.data.tags["raykd.state"] == ("failed" if diverged else "finished")
        assert run.info.status == ("FAILED" if diverged else "FINISHED")
        if diverged:
            assert "the loss is nan" in run.data.tags["raykd.failure"]
            assert noted[run.data.tags["mlflow.runName"]]["permanent"], "a resumed sweep does not try it again"
        else:
            assert 0 <= run.data.metrics["final_validation/accuracy"] <= 1
        assert not any(name.startswith("final_test") for name in run.data.metrics), "test chooses nothing"
    assert {run.info.status for runs in swept.roles.values() for run in runs} == {"FINISHED", "FAILED"}


def test_params_are_flat_and_neutral_where_unused(swept):
    runs = [run for runs in swept.roles.values() for run in runs]
    assert len({frozenset(run.data.params) for run in runs}) == 1
    for run in swept.roles["trial"]:
        params, arm = run.data.params, run.data.tags["raykd.arm"]
        assert (float(params["method.W"]) < 1) == (arm == "weighted")
        assert (float(params["method.alpha"]) > 0) == (arm not in ("finetune", "label_smoothing"))
        assert run.data.tags["raykd.control"] == str(arm not in ("kd", "weighted")).lower()


def test_the_best_of_each_method_is_trained_again_on_fresh_seeds(swept):
    trials = [run for run in swept.roles["trial"] if run.info.status == "FINISHED"]
    finals = swept.roles["student"] + swept.roles["baseline"]
    assert {run.data.params["seed"] for run in trials} == {"0"}
    best: dict[str, Any] = {}
    for run in sorted(trials, key=lambda run: run.data.tags["mlflow.runName"]):  # of equal ones, the first
        arm, score = run.data.tags["raykd.arm"], run.data.metrics["final_validation/accuracy"]
        if arm not in best or score > best[arm].data.metrics["final_validation/accuracy"]:
            best[arm] = run
    for arm, chosen in best.items():
        again = [run for run in finals if run.data.tags["raykd.arm"] == arm]
        assert sorted(run.data.params["seed"] for run in again) == ["3", "4"], "1 and 2 are the teachers'"
        for run in again:
            differ = {k for k, v in run.data.params.items() if v != chosen.data.params[k]}
            assert differ == {"seed"}
            assert "final_test/accuracy" in run.data.metrics
    arms = [r["group"] for r in swept.results["runs"] if r["role"] in ("student", "baseline")][::2]
    validation = {
        arm: sum(r["metrics"]["validation"]["accuracy"] for r in swept.results["runs"] if r.get("group") == arm)
        for arm in arms
    }
    assert [validation[arm] for arm in arms] == sorted(validation.values()), "by validation, the best last"


def test_the_best_student_is_registered(swept):
    version = swept.client.get_model_version_by_alias("reviews", "best")
    run = next(r for r in swept.roles["student"] if r.info.run_id == version.run_id)
    group = [r["group"] for r in swept.results["runs"] if r.get("group") in ("kd", "weighted")][-1]
    assert run.data.tags["raykd.arm"] == group
    best = [r for r in swept.results["runs"] if r.get("group") == group]
    assert [r["mlflow_run_id"] for r in best if "mlflow_model_id" in r] == [version.run_id]
    report = (swept.folder / "runs" / "reviews" / "report" / "report.md").read_text()
    assert f"The best method on validation, {group}" in report
    assert swept.text.splitlines()[-3:-1] != [], "it is on the screen, too"


def test_sweep_and_report_say_the_same(swept):
    run_id, sentence = swept.results["mlflow"]["run_id"], swept.results["verdict"]
    assert sentence.startswith("The best method on validation, ")
    assert sentence == conclusion(analyze(read(swept.client, "", swept.client.get_run(run_id))))
    assert swept.text.count(sentence) == 1, "on the screen, once"
    assert sentence in (swept.folder / "runs" / "reviews" / "report" / "report.md").read_text()


def test_trials_do_not_predict_test(swept):
    trainings = [path.parent for path in (swept.folder / "runs" / "store" / "trainings").glob("*/result.json")]
    students = len(swept.roles["student"]) + len(swept.roles["baseline"])
    assert sum((folder / "predictions-test.jsonl.gz").exists() for folder in trainings) == 2 + students
    assert all((folder / "predictions-validation.jsonl.gz").exists() for folder in trainings)
    finished = [run for run in swept.roles["trial"] if run.info.status == "FINISHED"]
    assert len(trainings) == 2 + students + len(finished)


def test_throughput_is_in_mlflow(swept):
    for run in swept.roles["student"] + swept.roles["teacher"]:
        assert run.data.metrics["throughput/tokens_per_s"] > run.data.metrics["throughput/rows_per_s"] > 0


def test_models_of_trials_do_not_stay(swept):
    kept = list((swept.folder / "runs" / "store" / "trainings").glob("*/generation-1/model/model.safetensors"))
    assert len(kept) == 2 + len(swept.roles["student"]) + len(swept.roles["baseline"])


def _points(swept, ids: list[str]) -> list[tuple[str, str, int]]:
    """The number of points of each metric of these runs. MLflow's client would take a query for each."""
    database = sqlite3.connect(swept.folder / "runs" / "mlflow.db")
    found = database.execute("SELECT run_uuid, key, count(*) FROM metrics GROUP BY run_uuid, key").fetchall()
    database.close()
    return sorted(row for row in found if row[0] in ids)


def test_a_second_sweep_reuses_everything(swept):
    ids = [run.info.run_id for runs in swept.roles.values() for run in runs if run.info.status == "FINISHED"]
    points = _points(swept, ids)
    assert {run_id for run_id, _, _ in points} == set(ids)
    said = Console(file=io.StringIO(), width=200)
    again = sweep.run(build(swept.tree), said)
    assert _points(swept, ids) == points
    assert [r.metrics for r in again] == [r.metrics for r in swept.scored]
    assert [r.mlflow_run_id for r in again] == [r.mlflow_run_id for r in swept.scored], "linked, not written again"
    text = said.file.getvalue()
    assert "seed 3, " in text
    assert "another command" not in text
    reused = [line for line in text.splitlines() if line.startswith("reused: ")]
    finished = {run.info.run_name for run in swept.roles["trial"] if run.info.status == "FINISHED"}
    assert finished in [set(line.partition(": ")[2].split(", ")) for line in reused]

    # The report finds in this sweep's runs all that it finds in the first one's.
    results = json.loads((swept.folder / "runs" / "reviews" / "results.json").read_text())
    assert results["mlflow"]["run_id"] != swept.results["mlflow"]["run_id"]
    assert results["verdict"] == swept.results["verdict"]
    ids = [one["mlflow"]["run_id"] for one in (swept.results, results)]
    found = [analyze(read(swept.client, "", swept.client.get_run(run_id))) for run_id in ids]
    first, second = ([(row.arm.name, row.test, str(row.gain)) for row in leaderboard(one)] for one in found)
    assert first == second
    for one in found:
        assert not one.experiment.missing
        for run in one.experiment.of("trial", "student", "baseline"):
            if run.state == "finished":
                assert one.experiment.history(run, "validation/accuracy")
                assert run.metrics["train/loss"] > 0
    first, second = (
        {run.name: one.experiment.history(run, "validation/accuracy") for run in one.experiment.children}
        for one in found
    )
    assert first == second
    models = swept.client.search_model_versions("name = 'reviews'")
    assert [model.version for model in models] in (["1"], [1]), "the same model is not registered again"


@pytest.mark.slow
def test_results_have_every_generation(swept):
    search = {"trials": 1, "seeds": 1, "space": {"method.type": ["born_again"]}}
    tree = swept.tree | {"name": "generations", "search": search}
    tree["training"] = tree["training"] | {"steps": 4, "eval_every": 4}
    said = Console(file=io.StringIO(), width=200)
    sweep.run(build(tree), said)
    runs = json.loads((swept.folder / "runs" / "generations" / "results.json").read_text())["runs"]
    found = {run["generation"]: run for run in runs if run["name"].startswith("born_again seed 3 generation ")}
    assert sorted(found) == [1, 2, 3]
    [student] = [run for run in runs if run["name"] == "born_again seed 3"]
    assert student["metrics"] == found[student["generation"]]["metrics"]
    assert "born_again generation 2" in said.file.getvalue(), "the table on the screen has them, too"


@pytest.mark.slow
@needs_browser
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
