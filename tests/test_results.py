"""What a command found: metrics, intervals, the table, results.json."""

import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console
from scipy.stats import binom
from scored import evaluate
from sklearn.metrics import f1_score
from tiny import questions_job, reviews_job

from raykd.common.intervals import interval
from raykd.common.screen import width_of
from raykd.config.load import build, override
from raykd.config.schema import TaskConfig
from raykd.plan.prepare import prepare
from raykd.tasks import make_task
from raykd.tasks.classification import calibration_error, macro_f1
from raykd.tracking.groups import groups_json
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import Scored, grouped, table, write_results

# The interval -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "right"), [(400, 320), (1000, 950), (60, 30)])
def test_interval_of_an_accuracy_is_the_binomials(rows, right):
    """Resampling 0s and 1s draws from a binomial distribution, whose quantiles scipy knows without resampling."""
    scores = np.zeros(rows)
    scores[:right] = 1
    low, high = interval(scores)
    tolerance = 0.1 * np.sqrt(right / rows * (1 - right / rows) / rows) + 1 / rows
    assert low == pytest.approx(binom.ppf(0.025, rows, right / rows) / rows, abs=tolerance)
    assert high == pytest.approx(binom.ppf(0.975, rows, right / rows) / rows, abs=tolerance)


def test_interval_does_not_depend_on_chance():
    scores = np.random.default_rng(1).random(50)
    assert interval(scores) == interval(scores)


def test_interval_of_several_seeds_is_of_their_mean_over_the_same_rows():
    one = np.random.default_rng(1).integers(0, 2, 200).astype(float)
    assert interval(np.stack([one, one])) == interval(one)
    assert np.isnan(interval(np.stack([one, 1 - one]))).all(), "what one seed gets wrong the other gets right"


def test_interval_without_spread():
    """Ten right answers of ten: the exact interval of such a share goes down to 0.69 (Clopper and Pearson 1934)."""
    assert np.isnan(interval(np.ones(10))).all()
    assert np.isnan(interval(np.array([0.5]))).all()


def test_interval_resamples_contexts():
    """Questions of one context, all right or all wrong together, say as much as one question."""
    one = np.random.default_rng(1).integers(0, 2, 60).astype(float)
    row_groups = [f"context {i // 5}" for i in range(300)]
    assert interval(np.repeat(one, 5), row_groups) == pytest.approx(interval(one))
    narrow, wide = (high - low for low, high in (interval(np.repeat(one, 5)), interval(np.repeat(one, 5), row_groups)))
    assert wide > 2 * narrow
    assert np.isnan(interval(np.arange(4.0), ["all"] * 4)).all()


def test_contexts_are_in_the_table_and_in_the_file(tmp_path):
    run = dataclasses.replace(scored("a", "teacher", 0.7), row_groups=[i // 10 for i in range(100)])
    low, high = interval(run.scores, run.row_groups)
    assert low < interval(run.scores)[0]
    assert shown([run], False)[-1][5] == f"{low:.4f} to {high:.4f}"
    assert json.loads(write_results(tmp_path, [run], {}).read_text())["runs"][0]["interval"] == [low, high]
    alone = dataclasses.replace(run, row_groups=["all"] * 100)
    assert json.loads(write_results(tmp_path, [alone], {}).read_text())["runs"][0]["interval"] == [None, None]
    assert shown([alone], False)[-1][5] == ""


def test_contexts_are_the_tasks_own_column(tmp_path):
    of_questions = Recorder.row_groups.func(SimpleNamespace(prepared=prepare(build(questions_job(tmp_path / "q")))))
    assert len(of_questions) == 12
    assert all(" lives in " in context for context in of_questions)
    assert Recorder.row_groups.func(SimpleNamespace(prepared=prepare(build(reviews_job(tmp_path / "r"))))) is None
    assert groups_json(prepare(build(reviews_job(tmp_path / "r"))), None) == {}
    grouped = prepare(build(override(reviews_job(tmp_path / "r"), {"data.group": "label"})))
    found = groups_json(grouped, "label")
    assert found.pop("column") == "label"
    for split, numbers in found.items():
        labels = grouped.splits[split].rows["label"][:]
        assert numbers == [int(label != labels[0]) for label in labels]
    assert found.keys() == {"validation", "test"}


# Grouping and table ---------------------------------------------------------------------------------


def scored(name: str, role: str, test: float, seed: int | None = None, group: str | None = None, **more) -> Scored:
    """A run whose test accuracy is `test`, on 100 rows."""
    right = (np.arange(100) < round(test * 100)).astype(float)
    metrics = {"validation": {"accuracy": test - 0.01, "nll": 1.0}, "test": {"accuracy": test, "nll": 2.0}}
    details = ({"group": group} if group else {}) | more
    return Scored(name, role, "kd", seed, metrics, right, f"id of {name}", details)


def experiment(student: float) -> list[Scored]:
    return [
        scored("a", "teacher", 0.7),
        scored("b", "teacher", 0.8),
        scored("c", "teacher", 0.75),
        scored("ensemble", "ensemble", 0.85),
        scored("baseline seed 0", "baseline", 0.6, 0, "baseline"),
        scored("baseline seed 1", "baseline", 0.7, 1, "baseline"),
        scored("student seed 0", "student", student - 0.02, 0, "student (kd)"),
        scored("student seed 1", "student", student + 0.02, 1, "student (kd)"),
    ]


def test_runs_that_differ_in_the_seed_are_together():
    groups = grouped(experiment(0.9))
    assert {name: [r.name for r in group] for name, group in groups} == {
        "a": ["a"],
        "b": ["b"],
        "c": ["c"],
        "ensemble": ["ensemble"],
        "baseline": ["baseline seed 0", "baseline seed 1"],
        "student (kd)": ["student seed 0", "student seed 1"],
    }


def test_a_teacher_may_be_called_like_a_method():
    runs = [scored("kd", "teacher", 0.9), scored("student seed 0", "student", 0.7, 0, "kd")]
    assert [[run.name for run in group] for _, group in grouped(runs)] == [["kd"], ["student seed 0"]]


def shown(runs: list[Scored], percent: bool, width: int = 200) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(runs, "accuracy", percent, width))
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in lines if "│" in line]


def test_table_has_a_line_for_each_group():
    rows = {row[0]: row for row in shown(experiment(0.9), False)}
    assert list(rows) == ["a", "b", "c", "ensemble", "baseline", "student (kd)"]
    low, high = interval(np.stack([r.scores for r in experiment(0.9)[-2:]]))
    expected = ["student (kd)", "kd", "0, 1", "0.8900", "0.9000", f"{low:.4f} to {high:.4f}", "2.0000"]
    assert rows["student (kd)"] == expected
    assert rows["a"][2] == "", "a teacher's seed is its recipe's affair"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_narrow_screen_gets_fewer_columns_and_whole_numbers(width):
    """What is there is what a wide screen shows; the score on test and its interval are always there."""
    wide, narrow = shown(experiment(0.9), False), shown(experiment(0.9), False, width)
    assert {"test", "interval"} <= set(header(width))
    places = [header(200).index(column) for column in header(width)]
    assert narrow == [[row[at] for at in places] for row in wide]
    assert len(header(80)) < len(header(140)) == len(header(200))


def header(width: int) -> list[str]:
    return [column.header for column in table(experiment(0.9), "accuracy", False, width).columns]


def test_table_of_a_metric_in_percent():
    """A task's scores of single rows are on its headline's scale, and so is the interval."""
    run = scored("a", "teacher", 0.7)
    run = dataclasses.replace(run, scores=100 * run.scores)
    for values in run.metrics.values():
        values["accuracy"] *= 100
    low, high = interval(run.scores)
    assert 50 < low < 70 < high < 90
    assert shown([run], True)[-1][3:6] == ["69.00", "70.00", f"{low:.2f} to {high:.2f}"]


# results.json -------------------------------------------------------------------------------------


def test_results_file(tmp_path):
    runs = [scored("a", "teacher", 0.7), scored("s", "student", 0.9, 3, "student (kd)", model="/somewhere")]
    path = write_results(tmp_path, runs, {"name": "x", "headline": "accuracy"})
    assert path == tmp_path / "results.json"
    found = json.loads(path.read_text())
    assert found["name"] == "x"
    assert [r["name"] for r in found["runs"]] == ["a", "s"]
    assert found["runs"][1] == {
        "name": "s",
        "role": "student",
        "method": "kd",
        "seed": 3,
        "metrics": {"validation": {"accuracy": 0.89, "nll": 1.0}, "test": {"accuracy": 0.9, "nll": 2.0}},
        "interval": list(interval(runs[1].scores)),
        "chance": None,
        "at_chance": False,
        "mlflow_run_id": "id of s",
        "group": "student (kd)",
        "model": "/somewhere",
    }
    assert found["runs"][0]["seed"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"], "no draft stays"


def test_results_without_scores_of_single_rows(tmp_path):
    run = Scored("a", "teacher", "kd", None, {}, np.array([]), "id", {})
    assert json.loads(write_results(tmp_path, [run], {}).read_text())["runs"][0]["interval"] == [None, None]


# Classification's metrics -------------------------------------------------------------------------


def test_calibration_error_by_hand():
    """15 bins of equal width: 0.93 and 0.92 lie in bin 13 (0.867 to 0.933), 0.5 in bin 7, 0.34 in bin 5."""
    confidence = np.array([0.93, 0.92, 0.5, 0.34])
    right = np.array([1.0, 0.0, 1.0, 0.0])
    # |sum of confidence - sum of right| of each bin, over the number of rows:
    # bin 13: |1.85 - 1| = 0.85; bin 7: |0.5 - 1| = 0.5; bin 5: |0.34 - 0| = 0.34
    assert calibration_error(confidence, right) == pytest.approx((0.85 + 0.5 + 0.34) / 4)


def test_calibration_error_at_the_bins_ends():
    assert calibration_error(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(0.5)
    # 10/15 belongs to the bin above it: with 0.7 (bin 10) it makes one bin, with 0.66 (bin 9) two.
    border = 10 / 15 + 1e-9
    right = np.array([1.0, 0.0])
    assert calibration_error(np.array([border, 0.7]), right) == pytest.approx(abs(border + 0.7 - 1) / 2, abs=1e-6)
    two = (1 - border) / 2 + 0.66 / 2
    assert calibration_error(np.array([border, 0.66]), right) == pytest.approx(two, abs=1e-6)


def test_calibration_of_a_perfectly_calibrated_model():
    right = np.array([1.0] * 8 + [0.0] * 2)
    assert calibration_error(np.full(10, 0.8), right) == pytest.approx(0, abs=1e-12)


def test_classification_metrics_by_hand():
    """Three classes, six rows; class c is never predicted."""
    task = make_task(TaskConfig(type="text-classification"), ["a", "b", "c"])
    gold = [0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 1, 1, 0, 1]
    p = [0.8, 0.6, 0.5, 0.7, 0.9, 0.6]  # of the predicted class; the others share the rest alike
    rows = []
    for k, chance in zip(predicted, p, strict=True):
        row = np.full(3, (1 - chance) / 2)
        row[k] = chance
        rows.append(np.log(row)[None] + 5)  # (H, C); a constant changes nothing
    raw = Dataset.from_dict({"text": ["x"] * 6, "label": gold, "labels": [[y] for y in gold]})
    found = evaluate(task, rows, raw, raw)
    assert found.metrics["accuracy"] == pytest.approx(3 / 6)
    # a: precision 2/3, recall 2/3; b: precision 1/3, recall 1/2; c: none.
    assert found.metrics["macro_f1"] == pytest.approx((2 / 3 + 2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2) + 0) / 3)
    of_gold = [0.8, 0.6, 0.25, 0.7, 0.05, 0.2]
    assert found.metrics["nll"] == pytest.approx(-np.log(of_gold).mean())
    # Bins: 0.8 in 12, 0.6 twice in 9 (8.99... of 0.6 * 15 is 9), 0.5 in 7, 0.7 in 10, 0.9 in 13.
    assert found.metrics["ece"] == pytest.approx((0.2 + abs(1.2 - 1) + 0.5 + 0.3 + 0.9) / 6)
    assert found.scores.tolist() == [1, 1, 0, 1, 0, 0]
    assert found.scores.mean() == found.metrics[task.primary_metric]
    assert found.predictions[2] == {"id": 2, "prediction": "b", "label": "a", "confidence": 0.5, "score": 0.0}
    assert [p["score"] for p in found.predictions] == found.scores.tolist()
    assert set(found.metrics) == set(task.metric_names)


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_batches_score_as_the_whole_split_to_the_last_bit(classes):
    rng = np.random.default_rng(classes)
    logits = (rng.normal(size=(1000, 1, classes)) * 3).astype(np.float16)
    gold = rng.integers(0, classes, 1000)
    task = make_task(TaskConfig(type="text-classification"), [str(c) for c in range(classes)])
    rows = Dataset.from_dict({"text": ["x"] * 1000, "label": gold, "labels": gold[:, None]})
    scores = logits[:, 0].astype(np.float64)
    scores -= scores.max(1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    for batch in (1, 7, 1000):
        found = evaluate(task, logits, rows, rows, batch=batch)
        assert found.metrics["accuracy"] == (log_p.argmax(1) == gold).mean()
        assert found.metrics["nll"] == -log_p[np.arange(1000), gold].mean()
        assert found.metrics["ece"] == calibration_error(np.exp(log_p.max(1)), found.scores)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_macro_f1_is_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    for rows in (1, 2, 5, 100):
        gold, predicted = rng.integers(0, classes, (2, rows))
        expected = f1_score(gold, predicted, average="macro", zero_division=0.0)
        assert macro_f1(gold, predicted) == pytest.approx(expected, rel=1e-12)


def test_macro_f1_leaves_out_classes_that_are_nowhere():
    """A class of neither labels nor predictions has no F1; it does not count as 0."""
    task = make_task(TaskConfig(type="text-classification"), ["a", "b", "c"])
    raw = Dataset.from_dict({"text": ["x"] * 4, "label": [0, 1, 0, 1], "labels": [[0], [1], [0], [1]]})
    found = evaluate(task, [np.eye(3)[[k]] for k in (0, 1, 0, 1)], raw, raw)
    assert found.metrics["macro_f1"] == 1.0


def test_a_group_at_chance_is_marked(tmp_path):
    """Chance is 0.7: one of the baseline's seeds is at it, the other is below."""
    runs = [dataclasses.replace(run, chance={"accuracy": 0.7}) for run in experiment(0.9)]
    names = [row[0] for row in shown(runs, False)]
    assert names == ["a *", "b", "c", "ensemble", "baseline *", "student (kd)"]
    assert "0.7000 on test: a, baseline" in table(runs, "accuracy", False, 200).caption
    written = json.loads(write_results(tmp_path, runs, {}).read_text())["runs"]
    assert [run["at_chance"] for run in written] == [True, False, False, False, True, True, False, False]
    assert table(experiment(0.1), "accuracy", False, 200).caption is None, "chance is not known"


@pytest.mark.parametrize(("columns", "width"), [(None, 140), ("80", None), ("", 140), ("wide", 140)])
def test_a_log_is_as_wide_as_columns_says(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert width_of(io.StringIO()) == width
    if width is None:
        assert Console(file=io.StringIO(), width=None).width == 80
