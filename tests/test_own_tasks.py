"""`task.type: my_tasks:Stars`, as the documentation shows it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from taught import teach
from tiny import reviews_job

from raykd.cli import main
from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs
from raykd.predictions import predictor
from raykd.tasks import make_task
from raykd.training.loop import train

PAGE = (Path(__file__).parents[1] / ".docs" / "pages" / "tasks.md").read_text()
CODE = PAGE.split("## Your own task")[1].split("```python\n")[1].split("```")[0]

DERIVED = "from raykd.tasks import TextClassification\nclass Mine(TextClassification):\n"


@pytest.fixture
def here(here: Path) -> Path:
    """With the documented task."""
    (here / "my_tasks.py").write_text(CODE)
    return here


def test_the_documented_task_is_taught_distilled_scored_and_predicts(here, tmp_path, capsys):
    config, prepared, served = teach(tmp_path, {"task.type": "my_tasks:Stars"})
    assert config.task.kind == "text-classification"
    assert type(prepared.task).__name__ == "Stars"
    assert prepared.task.primary_metric == "closeness"
    [job] = student_jobs(config, prepared, Method(type="kd"), served)
    list(train(pickle.loads(pickle.dumps(job))))
    result = job.result()
    for split, scores in result["generations"][0].items():
        assert scores["closeness"] == pytest.approx((1 + scores["accuracy"]) / 2), split
    assert "pipeline_tag: text-classification" in (Path(result["model"]) / "README.md").read_text()
    # The encoded rows and logits of another task of the same settings are others.
    plain = prepare(build(override(config.model_dump(), {"task.type": "text-classification"})))
    assert plain.student.splits["train"].digest != prepared.student.splits["train"].digest

    (tmp_path / "new.csv").write_text("text\nthe film is good\n")
    assert main(["predict", result["model"], str(tmp_path / "new.csv")]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["prediction"] in prepared.task.label_names
    assert "my_tasks:Stars" in out.err

    # A change of the source, also of what it imports, makes it another training.
    (here / "my_tasks.py").write_text(CODE.replace("/ 2)", "/ 4)"))
    changed = build(config.model_dump())
    assert changed.task.code.digest != config.task.code.digest
    again = prepare(changed)
    assert again.task.chance(Dataset.from_dict({"label": [0, 1]})) == pytest.approx(0.875)
    assert prepared.task.chance(Dataset.from_dict({"label": [0, 1]})) == pytest.approx(0.75)
    [other] = student_jobs(changed, again, Method(type="finetune"), ())
    [before] = student_jobs(config, prepared, Method(type="finetune"), ())
    assert other.fingerprint != before.fingerprint


def test_it_reaches_a_worker_elsewhere(here, tmp_path):
    settings = TaskConfig(type="my_tasks:Stars", max_length=9)
    (tmp_path / "settings").write_bytes(pickle.dumps(settings.model_copy(update={"max_length": 8})))
    code = "import pickle, sys\nsys.path.append(sys.argv[2])\nfrom raykd.tasks import make_task\n"
    code += "task = make_task(pickle.load(open(sys.argv[1], 'rb')), ['a', 'b'])\n"
    code += "print(task.primary_metric, task.identity())"
    command = [sys.executable, "-c", code, str(tmp_path / "settings"), str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    wanted = {"task": "text-classification", "max_length": 8, "code": settings.code.digest}
    assert done.stdout == f"closeness {wanted}\n", done.stderr
    assert make_task(TaskConfig(type="text-classification")).identity().keys() == {"task", "max_length"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no module"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("Other = 3", "has no Mine"),
        ("Mine = 3", "it is no class of a task"),
        ("class Mine:\n    kind = ''", "not derived from raykd.tasks.Task"),
        ("from raykd.tasks import Task\nclass Mine(Task):\n    columns = ()", "it lacks primary_metric, .*encode"),
        (f"{DERIVED}    predicts_values = True", "its predicts_values is True"),
        (f"{DERIVED}    primary_metric = 'x'", "its primary_metric, x, is"),
    ],
)
def test_an_unusable_one_is_named(here, tmp_path, text, reason):
    path = f"task_{abs(hash(text))}:Mine"
    if text is not None:
        (here / f"{path.partition(':')[0]}.py").write_text(text)
    with pytest.raises(ConfigError, match=f"^task.type = {path}: .*{reason}") as error:
        prepare(build(override(reviews_job(tmp_path), {"task.type": path})))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        ("Regression", {"method.temperature": 2}, "method.temperature"),
        ("Regression", {"task.tolerance": 0.5}, None),
        ("TextGeneration", {"task.train_on": "all"}, None),
        ("TextClassification", {"task.train_on": "all"}, "task.train_on"),
        ("QuestionAnswering", {"task.labels": ["a", "b"]}, "task.labels"),
        ("TextClassification", {"data.augment": {"drop_words": 0.1}, "logits.mode": "live"}, None),
        ("TokenClassification", {"data.augment": {"drop_words": 0.1}, "logits.mode": "live"}, "data.augment"),
    ],
)
def test_it_is_configured_as_the_task_that_it_derives_from(here, tmp_path, base, changes, reason):
    (here / "derived.py").write_text(f"from raykd.tasks import {base}\nclass Mine({base}): ...\n")
    tree = override(reviews_job(tmp_path), {"task": {"type": "derived:Mine"}, **changes})
    if reason is None:
        assert build(tree).task.max_length == {"TextGeneration": 512}.get(base, 128)
        return
    with pytest.raises(ConfigError) as error:
        build(tree)
    assert error.value.key.startswith(reason)


def test_a_model_of_the_hub_does_not_choose_code_to_run(tmp_path, monkeypatch):
    """What its raykd.json names is imported only if the user names it, too."""
    marker = tmp_path / "ran"
    (tmp_path / "payload.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "raykd.json").write_text(json.dumps({"task": {"type": "payload:Task"}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setattr(predictor, "model_folder", lambda model, key: folder)  # as downloaded
    with pytest.raises(ConfigError) as caught:
        predictor.Predictor(ModelConfig(pretrained="someone/model"))
    assert caught.value.key == "task.type"
    assert not marker.exists()
    with pytest.raises(ConfigError, match="payload"):  # which has no such class, but is imported now
        predictor.Predictor(ModelConfig(pretrained="someone/model"), {"type": "payload:Task"})
    assert marker.exists()
