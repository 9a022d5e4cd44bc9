"""What the report says of the stored predictions: by hand, for six examples."""

import pytest
from test_conclusion import analyzed, arm

from raykd.reports.details import details, reliability
from raykd.reports.read import Experiment


def rows(*values):
    """Predictions of (prediction, label, confidence)."""
    return [{"id": i, "prediction": p, "label": y, "confidence": c} for i, (p, y, c) in enumerate(values)]


STUDENT = rows(
    ("a", "a", 0.95), ("a", "a", 0.91), ("b", "a", 0.6), ("b", "b", 0.85), ("a", "b", 0.99), ("b", "b", 1.0)
)  # fmt: skip
ENSEMBLE = rows(
    ("a", "a", 0.9), ("b", "a", 0.5), ("a", "a", 0.7), ("b", "b", 0.8), ("b", "b", 0.7), ("b", "b", 0.9)
)  # fmt: skip


@pytest.fixture
def analysis():
    return analyzed(arm("kd", "method", [0.9], 0.9), arm("ensemble", "ensemble", [0.95], 0.95))


def test_recall_agreement_and_differences(analysis, monkeypatch):
    stored = {"kd 0": STUDENT, "ensemble 0": ENSEMBLE}
    monkeypatch.setattr(Experiment, "prediction_rows", lambda self, run, split: stored[run.name])
    found = details(analysis)
    assert found.recalls == [("a", 3, pytest.approx(2 / 3), pytest.approx(2 / 3)), ("b", 3, pytest.approx(2 / 3), 1.0)]
    assert found.agreement == pytest.approx(0.5)
    assert [row["id"] for row in found.differing] == ["4", "1", "2"], "the surest first"
    shown = {"id": "4", "label": "b", "student": "a (99%)", "ensemble": "b (70%)"}
    assert found.differing[0] == shown | {"text": "", "picture": ""}
    analysis.experiment.examples["4"] = {"text": "a fine film"}
    assert details(analysis).differing[0] == shown | {"text": "a fine film", "picture": ""}


def test_it_is_of_the_seed_that_is_best_on_validation(monkeypatch):
    """Which is the one that is registered, and that `raykd predict` takes."""
    analysis = analyzed(arm("kd", "method", [0.9, 0.8], 0.9), arm("ensemble", "ensemble", [0.95], 0.95))
    for run, value in zip(analysis.best.runs, (0.7, 0.75), strict=True):
        run.metrics[f"final_validation/{analysis.experiment.metric}"] = value
    stored = {"kd 0": ENSEMBLE, "kd 1": STUDENT, "ensemble 0": ENSEMBLE}
    monkeypatch.setattr(Experiment, "prediction_rows", lambda self, run, split: stored[run.name])
    found = details(analysis)
    assert (found.seed, found.agreement) == ("kd 1", pytest.approx(0.5))


def test_reliability_has_ten_bins_of_equal_width():
    """0.6 alone and wrong; 0.85 alone and right; 0.91, 0.95, 0.99 and 1.0 together, one of them wrong."""
    found = reliability(STUDENT)
    assert found == [(0.6, 0, 1), (0.85, 1, 1), (pytest.approx(0.9625), 0.75, 4)]


def test_tasks_without_one_label_and_confidence_have_none(analysis, monkeypatch):
    tags = [{"id": 0, "prediction": ["O"], "label": ["O"], "score": 1.0}]
    monkeypatch.setattr(Experiment, "prediction_rows", lambda self, run, split: tags)
    assert details(analysis) is None
    monkeypatch.setattr(Experiment, "prediction_rows", lambda self, run, split: STUDENT[: 5 if "kd" in run.name else 6])
    assert details(analysis) is None, "other examples"
