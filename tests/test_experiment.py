"""Whole experiments on real Ray: what a user runs, at toy size."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from rich.console import Console
from tiny import bert, questions_job, reviews_job, save_tokenizer

from raykd import api
from raykd.cli import main
from raykd.common.errors import TrainingError
from raykd.common.units import latency
from raykd.config.load import build, override
from raykd.experiment.command import run_experiment
from raykd.tracking.mlflow_store import connect

pytestmark = pytest.mark.usefixtures("ray_cluster")

METHODS = {
    "finetune": {},
    "label_smoothing": {},
    "kd": {"alpha": 0.7, "teacher": "b"},
    "annealing": {},
    "weighted": {"W": 0.5},
    "born_again": {"generations": 2, "average_generations": True},
}


@pytest.fixture
def said():
    return Console(file=io.StringIO(), width=200)


def results(tree: dict) -> dict:
    return json.loads((Path(tree["output"]) / tree["name"] / "results.json").read_text())


@pytest.fixture(scope="module")
def electra_tree(tmp_path_factory):
    return questions_job(tmp_path_factory.mktemp("electra"))


@pytest.mark.parametrize(
    "method", [m if m in ("weighted", "born_again") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_founding_experiment_at_toy_size(electra_tree, method, said):
    """ELECTRA, two teachers really trained, two windows, unanswerable questions, every method."""
    tree = override(electra_tree, {"method": {"type": method, **METHODS[method]}})
    run_experiment(build(tree), "distill", said)
    found = results(tree)
    by_role = {role: [r for r in found["runs"] if r["role"] == role] for role in ("teacher", "ensemble", "baseline")}
    assert [r["name"] for r in by_role["teacher"]] == ["a", "b"]
    assert len(by_role["ensemble"]) == len(by_role["baseline"]) == 1
    students = [r for r in found["runs"] if r["role"] == "student"]
    # Every generation is reported, and then the chosen one.
    assert len(students) == (3 if method == "born_again" else 1)
    student = students[-1]
    assert student["method"] == method
    assert student["seed"] == 0
    for split in ("validation", "test"):
        metrics = student["metrics"][split]
        assert metrics["total"] == 12
        assert metrics["NoAns_total"] == 4
        assert 0 <= metrics["f1"] <= 100
    # The threshold is chosen on validation, and only used on test.
    thresholds = {split: student["metrics"][split]["no_answer_threshold"] for split in ("validation", "test")}
    assert thresholds["validation"] == thresholds["test"]
    if method == "born_again":
        assert set(student["generations_average"]) == {"validation", "test"}
        assert not list(Path(tree["output"]).rglob("generations/*")), "a generation's logits go with the run"
    text = said.file.getvalue()
    assert "student" in text
    assert "MLflow" in text


def test_contexts_need_two_windows(electra_tree):
    """The toy data has what the test above claims."""
    from raykd.plan.prepare import prepare

    prepared = prepare(build(electra_tree))
    train = prepared.student.splits["train"].open()
    assert max(train["window"]) >= 1
    assert len(train) > 24


def test_student_folder_loads_with_transformers(electra_tree, said):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    run_experiment(build(override(electra_tree, {"method": {"type": "weighted", "W": 0.5}})), "distill", said)
    folder = results(electra_tree)["runs"][-1]["model"]
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(
        "where does anna live ?", "anna lives in rome .", return_tensors="pt"
    )
    assert model(**tokens).start_logits.shape == tokens["input_ids"].shape
    card = (Path(folder) / "README.md").read_text()
    assert "distilled from a, b" in card
    assert "| f1 |" in card
    costs = {run["name"]: run["serving"] for run in results(electra_tree)["runs"]}
    assert costs["ensemble"]["parameters"] == costs["a"]["parameters"] + costs["b"]["parameters"]
    assert costs["student seed 0"]["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert costs["student seed 0"]["batch"]["rows"] == electra_tree["training"]["batch_size"]
    assert f"- latency: {latency(costs['student seed 0']['one_row'])} for one row" in card
    # Predictions of the test rows by the command, which knows no answers, are those that were scored.
    output = Path(electra_tree["output"]) / "out.jsonl"
    runs, rows = Path(electra_tree["output"]) / electra_tree["name"], Path(electra_tree["data"]["source"])
    assert main(["predict", str(runs), str(rows), "data.test=train[36:]", "--output", str(output)]) == 0
    predicted = [json.loads(line) for line in output.read_text().splitlines()]
    with gzip.open(Path(folder).parents[1] / "predictions-test.jsonl.gz", "rt") as file:
        scored = [json.loads(line) for line in file]
    for name in ("id", "prediction", "best_answer"):
        assert [row[name] for row in predicted] == [row[name] for row in scored]


def test_python_gives_what_the_command_does(electra_tree, said, capsys):
    tree = override(electra_tree, {"method": {"type": "weighted"}})
    run_experiment(build(override(tree, {"method.W": 0.5})), "distill", said)  # reused, if another test has run it
    expected = results(tree)
    result = api.distill(tree, **{"method.W": 0.5})
    assert "reused: a, b" in capsys.readouterr().out
    assert result.folder == Path(tree["output"]) / tree["name"]
    assert result.answer == expected["verdict"]
    table = result.table()
    assert table["name"].tolist() == [r["name"] for r in expected["runs"]]
    assert table["test/f1"].tolist() == [r["metrics"]["test"]["f1"] for r in expected["runs"]]
    rows = pandas.DataFrame([{"id": "x", "question": "where does anna live ?", "context": "anna lives in rome ."}])
    predicted = api.predict(result.folder, rows)
    assert predicted.loc[0, "best_answer"] in rows.loc[0, "context"]


def test_an_upload_that_fails_leaves_a_finished_run(electra_tree, said, monkeypatch):
    """The tests have no network. Everything else is done by then, and `raykd push` uploads the student later."""
    monkeypatch.setattr("raykd.experiment.command.check_push", lambda config: None)  # the hub goes away later
    tree = override(electra_tree, {"method": {"type": "weighted", "W": 0.5}, "student.push_to_hub": "me/student"})
    with pytest.raises(TrainingError, match="raykd push .* me/student"):
        run_experiment(build(tree), "distill", said)
    found = results(tree)["mlflow"]
    assert connect(found["uri"])[0].get_run(found["run_id"]).info.status == "FINISHED"


@pytest.mark.long
def test_second_run_reuses_everything(tmp_path, said, caplog):
    tree = reviews_job(tmp_path, method="kd")
    first = run_experiment(build(tree), "distill", said)
    torn = min((tmp_path / "runs" / "store" / "trainings").glob("*/events.jsonl"))
    torn.write_text(torn.read_text() + '\n{"event": "evalu')  # as a killed process leaves it
    again = Console(file=io.StringIO(), width=200)
    second = run_experiment(build(tree), "distill", again)
    text = again.file.getvalue()
    assert "reused: a, b, baseline seed 0" in text
    assert "logits of a: 0 computed" in text
    assert "student seed 0" in text
    for before, after in zip(first, second, strict=True):
        assert before.metrics == after.metrics
        assert before.mlflow_run_id == after.mlflow_run_id, "linked, not written again"
    assert second[-1].details["mlflow_model_id"] == first[-1].details["mlflow_model_id"]

    client = connect(f"sqlite:///{tmp_path}/runs/mlflow.db")[0]
    for scored in second:
        client.delete_run(scored.mlflow_run_id)
    third = run_experiment(build(tree), "distill", Console(file=io.StringIO(), width=200))
    for before, after in zip(first, third, strict=True):
        assert before.metrics == after.metrics
        assert before.mlflow_run_id != after.mlflow_run_id, "a run that somebody has deleted is written again"
        assert client.get_run(after.mlflow_run_id).data.tags["raykd.role"] == after.role
    assert caplog.text.count("unfinished line") == 1, "the torn one, and no other"


@pytest.mark.slow
def test_retrained_teacher_does_not_get_the_old_ones_logits(tmp_path, said):
    tree = reviews_job(tmp_path)
    first = run_experiment(build(tree), "teach", said)
    store = tmp_path / "runs" / "store" / "logits"
    before = {p.name for p in store.iterdir()}
    again = Console(file=io.StringIO(), width=200)
    second = run_experiment(build(override(tree, {"teachers.a.recipe.seed": 7})), "teach", again)
    assert "logits of a: 120 computed" in again.file.getvalue()
    assert "logits of b: 0 computed" in again.file.getvalue()
    assert len({p.name for p in store.iterdir()} - before) == 1
    assert first[0].metrics["test"]["nll"] != second[0].metrics["test"]["nll"]
    assert first[1].metrics == second[1].metrics


@pytest.mark.slow
def test_grown_data_computes_only_what_is_new(tmp_path, said):
    """Given checkpoints, so that more rows do not change the teachers."""
    tree = reviews_job(tmp_path)
    run_experiment(build(tree), "teach", said)
    folders = [_model_of(tree, said, name) for name in ("a", "b")]
    given = override(tree, {"teachers": [{"name": n, "model": f} for n, f in zip("ab", folders, strict=True)]})
    run_experiment(build(override(given, {"data.train": "train[:40]"})), "teach", said)
    again = Console(file=io.StringIO(), width=200)
    run_experiment(build(override(given, {"data.train": "train[10:60]"})), "teach", again)
    # Trained teachers and given ones have the same weights, so even the first run has left nothing to do.
    assert "logits of a: 0 computed" in again.file.getvalue()


def _model_of(tree: dict, said: Console, name: str) -> str:
    from raykd.plan.prepare import prepare
    from raykd.plan.trainings import teacher_jobs

    config = build(tree)
    job = teacher_jobs(config, prepare(config))[name][0]
    return job.result()["model"]


@pytest.mark.slow
def test_folds_give_honest_logits(tmp_path, said):
    """A training row's logits come from the model that did not see it; any other row's from the mean."""
    import datasets
    import torch
    from transformers import AutoModelForSequenceClassification

    from raykd.data.folds import held_out
    from raykd.experiment.scoring import stored_logits
    from raykd.plan.prepare import prepare
    from raykd.plan.trainings import served_teacher, teacher_jobs

    tree = override(reviews_job(tmp_path), {"teachers.a.folds": 3})
    run_experiment(build(tree), "teach", said)
    config = build(tree)
    prepared = prepare(config)
    jobs = teacher_jobs(config, prepared)["a"]
    models = [j.result()["model"] for j in jobs]
    out = held_out(prepared.splits["train"], config.teachers[0], prepared.task)
    assert sorted(np.concatenate(out).tolist()) == list(range(60))
    for job, rows in zip(jobs, out, strict=True):
        assert set(job.row_subset.tolist()) == set(range(60)) - set(rows.tolist())
    served = served_teacher(config, prepared, config.teachers[0], models, "float32")
    loaded = [AutoModelForSequenceClassification.from_pretrained(m).eval() for m in models]
    for split, rows in (("train", [int(o[0]) for o in out]), ("test", [0, 5])):
        stored = stored_logits(prepared, [served], split, config.store / "logits")
        encoded: datasets.Dataset = prepared.teachers["a"].splits[split].open()
        for k, row in enumerate(rows):
            batch = prepared.task.collate(encoded[[row]], prepared.teachers["a"].model.processor)
            with torch.no_grad():
                each = [m(**batch.inputs).logits[0] for m in loaded]
            expected = each[k] if split == "train" else torch.stack(each).mean(0)
            expected = (expected - expected.max()).numpy()
            np.testing.assert_allclose(stored[[row]][0, 0, 0].astype(np.float32), expected, atol=2e-3)


def test_mlflow_has_a_parent_and_comparable_children(tmp_path, said):
    from mlflow import MlflowClient

    # One teacher of another architecture, with another tokenizer: rows meet by their content.
    other = str(save_tokenizer(tmp_path / "other", extra=["extra", "words"], reverse=True))
    tree = reviews_job(tmp_path, method={"type": "weighted", "W": 0.5})
    tree = override(tree, {"teachers.b.model": {"config": bert(), "tokenizer": other}, "student.seed": 1})
    run_experiment(build(tree), "distill", said)
    found = results(tree)
    client = MlflowClient(found["mlflow"]["uri"])
    parent = client.get_run(found["mlflow"]["run_id"])
    children = client.search_runs(
        [found["mlflow"]["experiment_id"]], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {c.data.tags["raykd.role"] for c in children} == {"teacher", "ensemble", "baseline", "student"}
    assert {c.info.status for c in (parent, *children)} == {"FINISHED"}
    assert len({frozenset(c.data.params) for c in children}) == 1, "identical keys, so that runs compare"
    student = next(c for c in children if c.data.tags["raykd.role"] == "student")
    baseline = next(c for c in children if c.data.tags["raykd.role"] == "baseline")
    # Fine-tuning the student's model on seed 1 is what teacher a is, and everything says so.
    assert baseline.data.tags["raykd.same_training"] == "a"
    assert "raykd.same_training" not in student.data.tags
    assert {r["name"]: r["same_training"] for r in found["runs"] if "same_training" in r} == {"baseline seed 1": "a"}
    assert "baseline seed 1 is the same model as teacher a" in said.file.getvalue()
    assert student.data.params["method.W"] == "0.5"
    assert baseline.data.params["method.W"] == "1.0"
    assert baseline.data.params["method.alpha"] == "0.0"
    history = client.get_metric_history(student.info.run_id, "train/loss")
    assert [p.step for p in history] == list(range(1, 11))
    assert {i.dataset.name for i in student.inputs.dataset_inputs} == {
        "reviews-train",
        "reviews-validation",
        "reviews-test",
    }
    assert student.data.metrics["final_test/accuracy"] == found["runs"][-1]["metrics"]["test"]["accuracy"]


@pytest.mark.slow
def test_failed_training_marks_its_run_and_the_experiments(tmp_path, said):
    """The student diverges; its teachers and baseline are done, and stay so."""
    from mlflow import MlflowClient

    diverging = {"learning_rate": 1e30, "max_grad_norm": 1e30, "steps": 20, "eval_every": 20}
    tree = reviews_job(tmp_path, method="kd", baseline=False)
    tree["student"]["training"] = diverging
    with pytest.raises(TrainingError, match=r"student seed 0: the loss is nan at step .*, rows \["):
        run_experiment(build(tree), "distill", said)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("reviews")
    runs = client.search_runs([experiment.experiment_id])
    status = {r.data.tags["raykd.role"]: r.info.status for r in runs}
    assert status == {"experiment": "FAILED", "student": "FAILED", "teacher": "FINISHED", "ensemble": "FINISHED"}
    failed = next(r for r in runs if r.data.tags["raykd.role"] == "student")
    assert "the loss is nan" in failed.data.tags["raykd.failure"]
