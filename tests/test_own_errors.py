"""What goes wrong in the user's own code is one line that says where, and the exception stays its cause."""

import inspect
import pickle
import re
import textwrap
from pathlib import Path

import pytest
import torch
from taught import teach
from tiny import reviews_job

from raykd.cli import main
from raykd.common.errors import ConfigError, OwnCodeError, own_code_checked
from raykd.common.own_code import read_code
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.config.schema import DataConfig, TaskConfig
from raykd.data.source import load_rows
from raykd.distillation.own import OwnFunction, own_weights
from raykd.plan.prepare import prepare
from raykd.plan.trainings import student_jobs
from raykd.tasks import Task, make_task
from raykd.tasks.common import RowError
from raykd.training.loop import train

METHODS = [name for name, member in vars(Task).items() if inspect.isfunction(member)]


def own(folder: Path, module: str, *members: str, base: str = "TextClassification") -> str:
    """The path of a new task with these members."""
    lines = [f"from raykd.tasks import {base}", f"class Mine({base}):", *(f"    {line}" for line in members)]
    (folder / f"{module}.py").write_text("\n".join(lines) + "\n")
    return f"{module}:Mine"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_a_task(here, name):
    path = own(here, f"fails_at_{name}", f"def {name}(self, *given):", "    return {}['nothing']")
    with pytest.raises(OwnCodeError) as error:
        getattr(make_task(TaskConfig(type=path)), name)()
    file = here / f"fails_at_{name}.py"
    assert str(error.value).startswith(
        f"task.type = {path}: its {name} failed (KeyError: 'nothing', in {name}, {file}, line 4)"
    )
    assert isinstance(error.value.__cause__, KeyError)


def test_exceptions_within_the_users_code_are_what_they_are(here):
    path = own(
        here, "catches",
        "def chance(self, rows):", "    try:", "        return self.notes(rows)",
        "    except LookupError:", "        return 0.5",
        "def notes(self, rows):", "    raise KeyError(rows)",
        "@staticmethod", "def summarize(rows):", "    raise ValueError('two\\nlines')",
    )  # fmt: skip
    task = make_task(TaskConfig(type=path))
    assert task.chance(3) == 0.5
    with pytest.raises(OwnCodeError, match="its notes failed"):
        task.notes(3)
    with pytest.raises(
        OwnCodeError, match=r"its summarize failed \(ValueError: two lines, in summarize, .*, line 12\)"
    ):
        task.summarize(3)


@pytest.mark.parametrize(
    "raised",
    [
        "RowError(1, 'it is empty', 'Fill it')",
        "MemoryError()",
        "torch.OutOfMemoryError('x')",
        "RuntimeError('CUDA error')",
    ],
)
def test_what_is_handled_elsewhere_passes(here, raised):
    module = f"passes_{abs(hash(raised))}"
    lines = ("def encode(self, *given):", "    import torch", "    from raykd.tasks.common import RowError")
    task = make_task(TaskConfig(type=own(here, module, *lines, f"    raise {raised}")))
    with pytest.raises((RowError, MemoryError, RuntimeError)):
        task.encode()


def test_a_check_scores_random_logits_and_exits_with_2(here, tmp_path, capsys):
    """The scores of a task are needed only after the first training, which can take hours."""
    path = own(here, "bad_scores", "def evaluate(self, *given):", "    return 1 / 0")
    with pytest.raises(ConfigError) as error:
        prepare(build(override(reviews_job(tmp_path), {"task.type": path})))
    assert not isinstance(error.value, OwnCodeError), "the exit code is 2"
    assert error.value.key == "task.type"
    assert f"its evaluate failed (ZeroDivisionError: division by zero, in evaluate, {here}" in str(error.value)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


NAN = (
    "def evaluate(self, *given):",
    "    scored = super().evaluate(*given)",
    "    scored.metrics['accuracy'] = float('nan')",
)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["def evaluate(self, *given):", "    return {'accuracy': 1}"], "its evaluate returns a dict"),
        (["metric_names = ('accuracy', 'x')"], "its evaluate does not return the metrics x"),
        ([*NAN, "    return scored"], "its evaluate returns accuracy = nan"),
        (["def predictions(self, *given):", "    return []"], "its predictions returns 0 dicts for 20 rows"),
        (["def collate(self, *given):", "    return None"], "its collate returns a NoneType"),
        (["def shapes(self, rows):", "    return [[1, 2]] * len(rows['length'])"], "its shapes returns a list"),
    ],
)
def test_a_wrong_result(here, tmp_path, members, reason):
    path = own(here, f"wrong_{abs(hash(reason))}", *members)
    with pytest.raises(ConfigError, match=f"^task.type = {path}: {reason}"):
        prepare(build(override(reviews_job(tmp_path), {"task.type": path})))


LATE = """
    def predictions(self, logits, encoded, raw, calibration):
        assert "label" in raw.column_names, "it needs labels"
        return super().predictions(logits, encoded, raw, calibration)
"""
STRANGE = """
class Strange(Exception):
    def __init__(self, one, two):
        super().__init__("strange")


calls = []


def f(logits, labels, mask):
    calls.append(0)
    if len(calls) > 2:
        raise Strange(1, 2)
    return logits[..., 0] * 0 + 1
"""


def test_at_run_time_the_exit_code_is_1(here, tmp_path, capsys):
    path = own(here, "late", *textwrap.dedent(LATE).strip().splitlines())
    text = (here / "late.py").read_text()
    (here / "strange.py").write_text(STRANGE)
    config, prepared, served = teach(tmp_path, {"task.type": path})
    [job] = student_jobs(config, prepared, Method(type="finetune"), ())
    list(train(pickle.loads(pickle.dumps(job))))
    (tmp_path / "new.csv").write_text("text\nthe film is good\n")
    assert main(["predict", job.result()["model"], str(tmp_path / "new.csv")]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("raykd: ")]
    number = text[: text.index("assert")].count("\n") + 1
    failed = f"its predictions failed (AssertionError: it needs labels, in predictions, {here}/late.py, line {number})"
    assert line.startswith(f"raykd: task.type = {path}: {failed}")

    method = Method(type="kd", weighting="strange:f")
    prepared.code["strange:f"] = read_code(method.own_functions)
    [job] = student_jobs(config, prepared, method, served)
    with pytest.raises(OwnCodeError) as raised:
        list(train(job))
    assert type(raised.value.__cause__).__name__ == "Strange"
    pattern = r"^method.weighting = strange:f: it failed on .* \(Strange: strange, in f, .*strange.py, line 13\)"
    assert re.match(pattern, str(raised.value))

    # As Ray sends it from a worker. This exception cannot be read from a pickle.
    sent = pickle.loads(pickle.dumps(raised.value))
    assert str(sent) == str(raised.value)
    assert isinstance(sent.__cause__, RuntimeError)
    assert str(sent.__cause__) == "Strange: strange"
    error = OwnCodeError("a", "b", "c", "d")
    try:
        raise error from KeyError("e")
    except OwnCodeError:
        sent = pickle.loads(pickle.dumps(error))
    assert isinstance(sent.__cause__, KeyError)
    assert sent.__cause__.args == ("e",)
    with pytest.raises(ConfigError) as raised, own_code_checked():
        raise sent
    assert raised.value.__cause__ is sent.__cause__


def test_the_place_can_be_in_what_the_module_imports(here):
    (here / "helps.py").write_text("def divide(x):\n\n    return x / (1 - 1) if x is int else 1 / 0\n")
    (here / "helped.py").write_text("from helps import divide\ndef f(logits, labels, mask):\n    return divide(1)\n")
    read_code({"method.weighting": "helped:f"}).install()
    weighting = OwnFunction.named("helped:f", "method.weighting")
    with pytest.raises(OwnCodeError, match=rf"division by zero, in divide, {here}/helps.py, line 3\)"):
        own_weights(weighting, torch.zeros(2, 3, 1, 4), torch.ones(3, 1, dtype=torch.int64), None)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("def load():\n    return open('no_such_file')\n", "in load, {here}/{name}.py, line 2"),
        ("x = {}\ny = x['z']\ndef load(): ...\n", "KeyError: 'z', {here}/{name}.py, line 2"),
    ],
)
def test_a_data_set(here, text, place):
    name = f"rows_{abs(hash(text))}"
    (here / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_rows(DataConfig(source=f"{name}:load"), "train")
    assert place.format(here=here, name=name) in str(error.value)
    assert str(error.value).startswith(f"data.source = {name}:load: ")
    assert error.value.__cause__ is not None
