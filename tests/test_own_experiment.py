"""A task, a weighting and a divergence of the user's own in a whole experiment on Ray, whose workers have no files."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import reviews_job

from raykd.api import report
from raykd.config.load import build, override
from raykd.experiment.command import run

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
    run(build(tree), "distill", said)
    results = json.loads((Path(tree["output"]) / tree["name"] / "results.json").read_text())
    runs = {run["name"]: run["metrics"]["test"] for run in results["runs"]}
    assert len(runs) >= 5
    for scores in runs.values():
        assert scores["closeness"] == pytest.approx((1 + scores["accuracy"]) / 2, abs=1e-6)
    page = report(Path(tree["output"]) / tree["name"]) / "report.md"
    assert "closeness" in page.read_text()
    run(build(tree), "distill", said)
    assert "reused" in said.file.getvalue()
