"""`method.weighting` and `method.divergence` from the user's own code, as the documentation shows them."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from taught import curve, student, teach
from tiny import reviews_job

from raykd.common.errors import ConfigError
from raykd.common.own_code import read_code
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.distillation.chunked import Settings, Taught, chunked_loss
from raykd.distillation.own import OwnFunction, own_divergence, own_weights
from raykd.plan.own_functions import code_by_function, code_of
from raykd.plan.prepare import prepare
from raykd.search.space import Space
from raykd.training.loop import train

PAGE = (Path(__file__).parents[1] / ".docs" / "pages" / "methods.md").read_text()
PART = PAGE.split("## Your own weighting or divergence")[1]
CODE = PART.split("```python\n")[1].split("```")[0]
SAME = """
import torch

from helpers_of_same import entropy_of


def entropy(logits, labels, mask):
    return len(logits) * torch.softmax(torch.stack([-entropy_of(one) for one in logits]), 0)


def reverse(log_p, log_q):
    return (log_q.exp() * (log_q - log_p)).sum(-1)
"""
SOMETIMES = """
calls = []


def f(logits, labels, mask):
    calls.append(0)
    return logits[..., 0] * 0 + len(calls) % 3
"""
HELPERS = """
import torch


def entropy_of(logits):
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)
"""


def function(folder: Path, name: str, text: str, key: str) -> OwnFunction:
    """The function `f` of a new module."""
    (folder / f"{name}.py").write_text(f"import torch\n\n\n{text}\n")
    read_code({key: f"{name}:f"}).install()
    return OwnFunction.named(f"{name}:f", key)


def test_the_documented_functions(here):
    (here / "my_methods.py").write_text(CODE)
    read_code({"method.weighting": "my_methods:margin"}).install()
    margin = OwnFunction.named("my_methods:margin", "method.weighting")
    squared = OwnFunction.named("my_methods:squared", "method.divergence")
    logits = torch.tensor([[[[2.0, 0.5, 9.0]]], [[[1.0, 1.0, 9.0]]]]).half()  # two teachers, three classes
    mask = torch.tensor([[[True, True, False]]])
    weights = own_weights(margin, logits, torch.tensor([[0]]), mask)
    wanted = 2 * np.exp([1.5, 0]) / np.exp([1.5, 0]).sum()  # margins over the allowed classes
    np.testing.assert_allclose(weights.flatten(), wanted, rtol=1e-6)
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.5, 0.25, 0.25]])
    assert own_divergence(squared, p.log(), q.log()).tolist() == pytest.approx([0.04 + 0.0025 + 0.0225])


def test_functions_that_compute_what_raykd_has_train_the_same_student(here, tmp_path):
    (here / "same.py").write_text(SAME)
    (here / "helpers_of_same.py").write_text(HELPERS)
    taught = teach(tmp_path)
    built_in = student(taught, Method(type="kd", weighting="entropy", divergence="reverse_kl"))
    method = Method(type="kd", weighting="same:entropy", divergence="same:reverse")
    code = code_of(method, {path: read_code({key: path}) for key, path in method.own_functions.items()})
    assert [module.name for module in code.modules] == ["helpers_of_same", "same"]
    prepared = taught[1]
    prepared.code.update({path: code for path in method.own_functions.values()})
    own = student(taught, method)
    assert own.code == code
    ours, theirs = curve(train(own)), curve(train(built_in))
    assert len(ours) == 4
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert own.fingerprint != built_in.fingerprint

    (here / "sometimes.py").write_text(SOMETIMES)
    method = Method(type="kd", weighting="sometimes:f")
    prepared.code.update(dict.fromkeys(method.own_functions.values(), read_code(method.own_functions)))
    with pytest.raises(
        ConfigError, match="method.weighting = sometimes:f: its weights sum to 4 on a decision, not to 2"
    ):
        list(train(student(taught, method)))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_large_vocabulary_is_no_hindrance_for_a_divergence(here, temperature):
    reverse = function(
        here, "large", "def f(log_p, log_q):\n    return (log_q.exp() * (log_q - log_p)).sum(-1)", "method.divergence"
    )
    random = torch.Generator().manual_seed(0)
    states, head = torch.randn(9, 4, generator=random), torch.randn(11, 4, generator=random)
    teacher, labels = torch.randn(9, 11, generator=random), torch.randint(11, (9,), generator=random)
    taught = Taught(torch.ones(1, 9), torch.ones(9, dtype=torch.bool), [teacher.__getitem__])
    gradients = []
    for divergence in (reverse, "reverse_kl"):
        mine = states.clone().requires_grad_()
        settings = Settings(alpha=0.5, temperature=temperature, divergence=divergence)
        chunked_loss(mine, lambda part: part @ head.T, [], labels, taught, settings, chunk=4).loss.backward()
        gradients.append(mine.grad)
    torch.testing.assert_close(*gradients)


def test_the_source_is_part_of_the_identity_and_reaches_a_worker_elsewhere(here, tmp_path):
    (here / "sent.py").write_text("from helpers_of_sent import twice\n\n\ndef f(x):\n    return twice(x)\n")
    (here / "helpers_of_sent.py").write_text("def twice(x):\n    return 2 * x\n")
    (here / "bystander.py").write_text("import sent\n")
    first = read_code({"method.weighting": "sent:f"})
    assert first.digest == read_code({"method.divergence": "sent:f"}).digest
    (tmp_path / "code").write_bytes(pickle.dumps(first))
    (here / "bystander.py").write_text("import sent  # changed\n")
    assert read_code({"method.weighting": "sent:f"}) == first
    (here / "helpers_of_sent.py").write_text("def twice(x):\n    return x + x\n")
    assert read_code({"method.weighting": "sent:f"}).digest != first.digest
    (here / "sent.py").unlink()
    code = "import inspect, pickle, sys\nsys.path.append(sys.argv[2])\ncode = pickle.load(open(sys.argv[1], 'rb'))\n"
    code += "code.install()\nfrom sent import f\nprint(f(3), 'twice(x)' in inspect.getsource(f))"
    command = [sys.executable, "-c", code, str(tmp_path / "code"), str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "6 True\n", done.stderr


def test_a_changed_module_is_loaded_anew(here):
    """As in a notebook, where the process stays."""
    path = here / "edited.py"
    values = []
    for text in ("from more_edited import A\nB = 1 + A\n", "from more_edited import A\nB = 2 + A\n"):
        (here / "more_edited.py").write_text(f"A = {len(values)}\n")
        path.write_text(text)
        read_code({"method.weighting": "edited:B"}).install()
        values.append(importlib.import_module("edited").B)
    assert values == [1, 3]


def test_packages_and_relative_imports(here):
    package = here / "own_package" / "inner"
    package.mkdir(parents=True)  # inner has no __init__.py
    (package.parent / "__init__.py").write_text("")
    (package / "losses.py").write_text("from ..base import f\nfrom . import other\nimport numpy\n")
    (package / "other.py").write_text("")
    (package.parent / "base.py").write_text("def f(log_p, log_q): ...\n")
    found = read_code({"method.divergence": "own_package.inner.losses:f"})
    names = ["own_package", "own_package.base", "own_package.inner", "own_package.inner.losses"]
    assert [module.name for module in found.modules] == [*names, "own_package.inner.other"]
    assert found.modules[2].source == ""
    found.install()
    assert callable(OwnFunction.named("own_package.inner.losses:f", "method.divergence").call)


def test_a_notebook_is_no_module():
    with pytest.raises(ConfigError, match="Write it to a file"):
        read_code({"method.weighting": "__main__:f"})


def test_a_folder_with_the_name_of_an_installed_package_is_not_it(here):
    (here / "datasets").mkdir()
    (here / "datasets" / "rows.csv").touch()
    (here / "random.py").write_text("raise SystemExit\n")
    sys.path.append(sys.path.pop(sys.path.index(str(here))))  # the current folder comes last
    (here / "uses_names.py").write_text("import random\nfrom datasets import Dataset\n")
    found = read_code({"method.weighting": "uses_names:Dataset"})
    assert [module.name for module in found.modules] == ["uses_names"]


WEIGHTINGS = {
    "def f(logits, labels, mask):\n    return torch.ones(logits.shape[:2])": r"shape \(2, 3\), not \(2, 3, 1\)",
    "def f(logits, labels, mask):\n    return torch.ones(logits.shape[:3]) / 2": "sum to 1 on a decision, not to 2",
    "def f(logits, labels, mask):\n    return torch.full(logits.shape[:3], torch.nan)": "not finite",
    "def f(logits, labels, mask):\n    return torch.stack([-labels.float(), 2.0 + labels])": "the weight -1",
    "def f(logits, labels, mask):\n    return 1": "returned a int",
    "def f(logits, labels):\n    return 1": r"failed on tensors of the shapes \(2, 3, 1, 4\), .*TypeError",
}


@pytest.mark.parametrize(("text", "reason"), WEIGHTINGS.items(), ids=range(len(WEIGHTINGS)))
def test_invalid_weights(here, text, reason):
    weighting = function(here, f"bad_weights_{list(WEIGHTINGS).index(text)}", text, "method.weighting")
    labels = torch.ones(3, 1, dtype=torch.int64)
    with pytest.raises(ConfigError, match=f"^method.weighting = {weighting.path}: .*{reason}") as error:
        own_weights(weighting, torch.zeros(2, 3, 1, 4), labels, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(log_p, log_q):\n    return log_q.sum()", r"shape \(\), not \(2, 1\)"),
        ("def f(log_p, log_q):\n    return (log_p - log_q).sum(-1) / 0", "number that is not finite"),
        ("def f(log_p, log_q):\n    return log_q.detach().sum(-1)", "does not depend on log_q"),
        ("def f(log_p, log_q):\n    return (log_q - log_q).abs().sqrt().sum(-1)", "gradient is not finite"),
        ("f = 3", "it is a int, not a function"),
        ("g = 3", "has no f"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        (None, "there is no module bad_divergence"),
        ("# -*- coding: utf-8 -*-\nf = '\xe9'".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_job_with_an_invalid_function_is_refused_before_it_starts(here, tmp_path, text, reason):
    name = f"bad_divergence_{abs(hash(text))}"
    if text is not None:
        (here / f"{name}.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    config = build(override(reviews_job(tmp_path), {"method.divergence": f"{name}:f"}))
    with pytest.raises(ConfigError, match=reason) as error:
        prepare(config)
    assert (error.value.key, error.value.value) == ("method.divergence", f"{name}:f")
    assert "\n" not in str(error.value)


def test_a_sweep_searches_them(here, tmp_path):
    (here / "my_methods.py").write_text(CODE)
    space = {"method.type": ["kd", "weighted"], "method.weighting": ["correctness", "my_methods:margin"]}
    space |= {"method.W": [0.0, 0.5], "method.divergence": ["forward_kl", "my_methods:squared"]}
    config = build(reviews_job(tmp_path, search={"space": space, "algorithm": "grid"}))
    arms = {arm.name: arm for arm in Space(config).arms}
    points = Space(config).points(arms["weighted"])
    assert len(points) == 2 * (2 + 1), "W is for correctness alone"
    assert code_by_function(config).keys() == {"my_methods:margin", "my_methods:squared"}
    method = Method(type="weighted", weighting="my_methods:margin")
    assert method.label == "weighted weighting=my_methods:margin W=1.0"
    assert code_of(method, code_by_function(config)).modules
    assert not code_of(Method(type="weighted"), code_by_function(config)).modules


@pytest.mark.parametrize(
    ("task", "changes", "reason"),
    [
        ("regression", {"method.weighting": "a:f"}, "regression has values"),
        ("regression", {"method.divergence": "a:f"}, "regression has values"),
        ("text-generation", {"method.weighting": "a:f"}, "needs every logit"),
        ("text-generation", {"search.space": {"method.weighting": ["mean", "a:f"]}}, "needs every logit"),
        ("text-generation", {"method.divergence": "a:f", "logits.keep": {"top_k": 8}}, "needs forward_kl"),
        ("text-classification", {"method.weighting": "a:f", "method.W": 0.5}, "weighting is a:f"),
        ("text-classification", {"method.weighting": "a.f"}, "no such choice"),
    ],
)
def test_what_a_task_does_not_have(tmp_path, task, changes, reason):
    changes = {"logits.keep": "hidden"} | changes if task == "text-generation" else changes
    if "top_k" in str(changes):
        changes |= {"method.temperature": 1, "method.pool": "probabilities"}
    with pytest.raises(ConfigError, match=reason):
        build(override(reviews_job(tmp_path), {"task": {"type": task}, **changes}))
