"""raykd from Python: jobs as mappings, overrides as keywords, results of earlier runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from mlflow import MlflowClient
from tiny import reviews_job

import raykd
from raykd import api
from raykd.common.environment import environment_for
from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.config.schema import TaskConfig
from raykd.models.folders import model_of
from raykd.models.loading import load_model
from raykd.models.opened import open_model
from raykd.plan.prepare import prepare
from raykd.tasks import make_task
from raykd.tracking.experiment import Tracking
from raykd.tracking.mlflow_store import local_uri
from raykd.tracking.recorder import Recorder

RUN = {"name": "a", "role": "teacher", "method": "finetune", "seed": 1, "interval": [0.5, 0.7]}
RUN |= {"metrics": {"validation": {"accuracy": 0.65}, "test": {"accuracy": 0.6, "nll": 0.9}}}


def test_a_job_is_a_file_or_a_mapping(tmp_path):
    tree = reviews_job(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(tree))
    overrides = {"method.alpha": 0.25, "teachers.a.recipe.seed": 7}
    first, second = api.load_job(tmp_path / "job.yaml", overrides), api.load_job(tree, overrides)
    assert first == second
    assert first.method.alpha == 0.25
    assert first.teachers[0].recipe.seed == 7
    assert tree == reviews_job(tmp_path), "the caller's mapping stays as it is"
    with pytest.raises(ConfigError, match="method.Z"):
        api.check(tree, **{"method.Z": 1})
    typed = api.load_job(
        tree, {"method.alpha": np.float64(0.25), "student.seed": np.arange(3), "output": tmp_path / "o"}
    )
    assert (typed.method.alpha, typed.student.seeds, typed.output) == (0.25, [0, 1, 2], str(tmp_path / "o"))
    assert yaml.safe_load(yaml.safe_dump(typed.model_dump()))["student"]["seed"] == [0, 1, 2]


def test_a_result_of_an_earlier_run(tmp_path):
    with pytest.raises(ConfigError, match=r"no results\.json"):
        api.read_result(tmp_path)
    found = {"verdict": "It is better.", "runs": [RUN], "mlflow": {"run_id": "1"}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    result = api.read_result(tmp_path)
    assert (result.answer, result.student, result.report) == ("It is better.", None, None)
    table = result.table()
    assert table.loc[0, ["name", "low", "high", "validation/accuracy", "test/accuracy", "test/nll"]].tolist() == [
        *("a", 0.5, 0.7, 0.65, 0.6, 0.9)
    ]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").touch()
    (tmp_path / "results.json").write_text(json.dumps({**found, "student": {"name": "s", "model": "/store/model"}}))
    result = api.read_result(tmp_path)
    assert str(result.student) == "/store/model"
    assert result.report == tmp_path / "report" / "report.html"
    for of, page in (("1", result.report), ("another", None)):
        (tmp_path / "report" / "report.html").write_text(f'<meta name="raykd-runs" content="{of}">')
        assert api.read_result(tmp_path).report == page


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}', '{"verdict": "", "runs": [], "mlf'])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        raykd.read_result(tmp_path)


def test_rows_of_a_data_frame_are_not_chosen_by_keys(tmp_path):
    with pytest.raises(ConfigError) as refused:
        raykd.predict("some/model", pandas.DataFrame({"text": ["a"]}), **{"data.test": "train[:2]"})
    assert refused.value.key == "data.test"


def test_predictions_have_the_index_of_their_rows(tmp_path):
    tree = reviews_job(tmp_path)
    opened = open_model(build(tree).student.model, make_task(TaskConfig(type="text-classification"), ("a", "b")), "m")
    load_model(opened, 0, opened.processor).save_pretrained(tmp_path / "model")
    opened.processor.save_pretrained(tmp_path / "model")
    rows = pandas.DataFrame({"text": ["good film", "bad film", "a film"], "prediction": [1, 2, 3]}, index=[7, 3, 5])
    found = raykd.predict(tmp_path / "model", rows)
    assert found.index.tolist() == [7, 3, 5]
    alone = raykd.predict(tmp_path / "model", rows.loc[[3]])
    assert alone.loc[3, "confidence"] == pytest.approx(found.loc[3, "confidence"])
    assert raykd.predict(tmp_path / "model", rows.iloc[:0]).columns.tolist() == ["text", "prediction"]
    for wrong, named in (
        (rows.assign(other=["a", 1, None]), "its column other holds values of different types"),
        (rows.set_axis(["text", "text"], axis=1), "several columns called text"),
    ):
        with pytest.raises(ConfigError, match=named):
            raykd.predict(tmp_path / "model", wrong)


STOPPED = """
import os, signal, sys
import raykd, raykd.experiment.command as command

def stop(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

command.run_stages = stop
raykd.teach(sys.argv[1])
"""


@pytest.mark.slow
def test_a_program_that_is_stopped_or_killed_leaves_no_run_that_says_running(tmp_path):
    (tmp_path / "job.yaml").write_text(json.dumps(reviews_job(tmp_path)))
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "job.yaml")]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False)
    assert stopped.returncode == 143, stopped.stderr
    client = MlflowClient(local_uri(tmp_path / "runs"))
    [experiment] = client.search_experiments(filter_string="name = 'reviews'")
    [run] = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags["raykd.role"] == "experiment"]
    assert run.info.status == "KILLED"
    client.update_run(run.info.run_id, "RUNNING")  # as SIGKILL would have left it
    again = api.load_job(tmp_path / "job.yaml", {})
    for folder, status in (("another", "RUNNING"), ((again.folder / ".id").read_text(), "KILLED")):
        client.set_tag(run.info.run_id, "raykd.folder", folder)
        with Recorder(Tracking(local_uri(tmp_path / "runs"), "reviews"), again, prepare(again), "teach"):
            assert client.get_run(run.info.run_id).info.status == status


def test_the_student_of_moved_runs(tmp_path):
    """`results.json` has the first place of its model, which is gone, or which is another copy."""
    run, model = tmp_path / "runs" / "digits", tmp_path / "runs" / "store" / "trainings" / "ab" / "model"
    run.mkdir(parents=True)
    student = {"name": "s", "model": "/workspace/trainings/runs/store/trainings/ab/model"}
    found = {"verdict": "", "runs": [RUN], "mlflow": {"run_id": "1"}, "student": student}
    (run / "results.json").write_text(json.dumps(found))
    assert str(api.read_result(run).student) == student["model"]
    model.mkdir(parents=True)
    assert api.read_result(run).student == model
    assert model_of(str(run)) == str(model)


def test_an_import_is_light():
    """Errors in a job are reported before torch and Ray are imported, which takes seconds."""
    code = "import sys, raykd\ntry: raykd.distill('no.yaml')\nexcept Exception as error: print(type(error).__name__)\n"
    code += "print([name for name in ('torch', 'ray', 'transformers', 'mlflow', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["ConfigError", "[]", ""]


@pytest.mark.long
def test_the_readme_runs(tmp_path):
    root = Path(__file__).parents[1]
    code = (root / "README.md").read_text().split("```python\n")[1].split("```")[0]
    short = code.replace('"student.seed": [0]', '"student.seed": [0], "training.steps": 20')
    assert short != code
    env = os.environ | {"RAYKD_HOME": str(tmp_path)}
    command = [sys.executable, "-c", f"{short}\nprint(rows.columns.tolist())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env)
    assert done.returncode == 0, done.stderr
    assert "vit-b" in done.stdout
    assert done.stdout.splitlines()[-1] == "['label', 'prediction', 'confidence', 'probabilities']"


def test_a_command_leaves_the_environment_as_it_was(monkeypatch):
    """The next one may be for another cluster, or for the hub."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with environment_for("10.9.9.9:6379"):
        assert os.environ["RAY_ADDRESS"] == "10.9.9.9:6379"
        assert "RAY_AUTH_MODE" not in os.environ, "the cluster has its own"
    with environment_for(None):
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys()


@pytest.mark.parametrize("first", ["", "import datasets", "import huggingface_hub"])
def test_offline_for_one_command_alone(first):
    """Whether the hub's libraries are imported before it or in it."""
    program = f"""
import os
os.environ.pop("HF_HUB_OFFLINE", None)
{first}
from raykd.common.environment import without_the_hub
with without_the_hub():
    import datasets
    from huggingface_hub import constants
    inside = constants.is_offline_mode(), datasets.config.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]
print(inside, constants.is_offline_mode(), datasets.config.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "(True, True, '1') False False None\n", done.stderr


def test_no_package_hides_a_function():
    """An import of raykd.NAME would replace the function of that name."""
    packages = {path.name.removesuffix(".py") for path in Path(raykd.__file__).parent.iterdir()}
    assert not packages & {*raykd.__all__}
    assert all(callable(getattr(raykd, name)) for name in raykd.__all__)
