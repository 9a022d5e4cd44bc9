"""A task, a weighting and a divergence of the user's own in a whole experiment on Ray, whose workers have no files."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import reviews_job

from raykd.api import report
from raykd.common.errors import TrainingError
from raykd.config.load import build, override
from raykd.experiment.command import run_experiment
from raykd.search import sweep

FAILS = """
calls = []


def margin(logits, labels, mask):
    calls.append(0)
    if len(calls) > 3:
        raise ArithmeticError("no margin")
    return logits[..., 0] * 0 + 1


def squared(log_p, log_q):
    return (log_p.exp() - log_q.exp()).square().sum(-1)
"""
PAGES = Path(__file__).parents[1] / ".docs" / "pages"


def code(page: str, heading: str) -> str:
    return (PAGES / page).read_text().split(f"## {heading}")[1].split("```python\n")[1].split("```")[0]


@pytest.mark.slow  # tests/test_own_methods.py and test_own_tasks.py have both without Ray
def test_an_experiment_with_all_of_them(ray_cluster, tmp_path, monkeypatch):
    here = tmp_path / "mine"
    here.mkdir()
    (here / "my_methods.py").write_text(code("methods.md", "Your own weighting or divergence"))
    (here / "my_tasks.py").write_text(code("tasks.md", "Your own task"))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    tree = override(reviews_job(tmp_path), {"task.type": "my_tasks:Stars", "method.type": "kd"})
    tree = override(tree, {"method.weighting": "my_methods:margin", "method.divergence": "my_methods:squared"})
    said = Console(file=io.StringIO(), width=200)
    run_experiment(build(tree), "distill", said)
    results = json.loads((Path(tree["output"]) / tree["name"] / "results.json").read_text())
    runs = {run["name"]: run["metrics"]["test"] for run in results["runs"]}
    assert len(runs) >= 5
    for scores in runs.values():
        assert scores["closeness"] == pytest.approx((1 + scores["accuracy"]) / 2, abs=1e-6)
    page = report(Path(tree["output"]) / tree["name"]) / "report.md"
    assert "closeness" in page.read_text()
    run_experiment(build(tree), "distill", said)
    assert "reused" in said.file.getvalue()


@pytest.mark.long  # tests/test_own_methods.py has the search space without Ray
def test_a_sweep_and_a_live_student(ray_cluster, tmp_path, monkeypatch):
    here = tmp_path / "mine"
    here.mkdir()
    (here / "my_losses.py").write_text(code("methods.md", "Your own weighting or divergence"))
    monkeypatch.chdir(here)
    space = {"method.type": ["weighted"], "method.weighting": ["my_losses:margin"], "method.alpha": [0.3, 0.7]}
    tree = reviews_job(tmp_path, search={"space": space, "trials": 1, "seeds": 1})
    tree = override(tree, {"training.steps": 4, "training.eval_every": 4})
    said = Console(file=io.StringIO(), width=200)
    sweep.run(build(tree), said)
    folder = Path(tree["output"]) / tree["name"]
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    trials = [trial for line in lines if line and (trial := json.loads(line).get("trial"))]
    [trial] = [trial for trial in trials if trial["arm"] == "weighted" and trial["state"] == "finished"]
    assert trial["setting"]["method.weighting"] == "my_losses:margin"
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [run["seed"] for run in runs if run.get("group") == "weighted"] == [3]

    methods = {"method.weighting": "my_losses:margin", "method.divergence": "my_losses:squared"}
    tree = override(tree, {"name": "live", "logits.mode": "live", **methods})
    run_experiment(build(tree), "distill", said)
    results = json.loads((Path(tree["output"]) / "live" / "results.json").read_text())
    assert {run["role"] for run in results["runs"]} == {"teacher", "ensemble", "baseline", "student"}

    # What fails on a worker, on the fourth call and later, keeps its cause.
    (here / "my_losses.py").write_text(FAILS)
    with pytest.raises(TrainingError, match="in margin, .*my_losses.py, line 8") as error:
        run_experiment(build(override(tree, {"name": "failing", "logits.mode": "stored"})), "distill", said)
    assert isinstance(error.value.__cause__, ArithmeticError)
