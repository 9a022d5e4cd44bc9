"""What holds for every file of cluster/, and that each has a test that knows it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
CLUSTER = TOP / "cluster"
CHECKED_IN = {
    "aws.yaml": "test_ray_up.py",
    "gcp.yaml": "test_ray_up.py",
    "on_prem.yaml": "test_ray_up.py",
    "slurm.sh": "test_slurm.py",
    "kubernetes/namespace.yaml": "test_kubernetes.py",
    "kubernetes/mlflow.yaml": "test_kubernetes.py",
    "kubernetes/raycluster.yaml": "test_kubernetes.py",
    "kubernetes/rayjob.yaml": "test_kubernetes.py",
    "Containerfile": "test_containers.py",
    "compose.yaml": "test_containers.py",
}
SECRET = re.compile(r"password|secret|token|_key\b|key_id", re.IGNORECASE)
NO_SECRET = {"RAY_AUTH_TOKEN_PATH", "secretName", "secretKeyRef", "automountServiceAccountToken"}


def test_every_file_has_its_test_and_its_line_in_the_readme():
    files = [path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".md" and path.name != ".env"]
    found = {str(path.relative_to(CLUSTER)) for path in files}
    assert found == CHECKED_IN.keys(), "a file without a test, or a test without its file"
    readme = (CLUSTER / "README.md").read_text()
    for name, module in CHECKED_IN.items():
        assert Path(name).name in (Path(__file__).parent / module).read_text(), f"{module} does not look at {name}"
        assert f"[{name}]({name})" in readme


@pytest.mark.parametrize("name", CHECKED_IN)
def test_it_begins_with_its_commands(name):
    lines = [line for line in (CLUSTER / name).read_text().splitlines() if not line.startswith("#!")]
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("# ") and line != "#")]
    commands = [line for line in head if line.startswith("#   ") and not line.startswith("#     ")]
    assert 2 <= len(commands) <= 5, commands
    assert any(name in line or Path(name).name in line for line in commands)


@pytest.mark.parametrize("name", [*CHECKED_IN, "README.md"])
def test_it_holds_no_secret(name):
    text = (CLUSTER / name).read_text()
    assert not re.search(r"://[^\s/@:]+:[^\s/@]+@", text), "an address with a password in it"
    if name.endswith(".yaml"):
        for path, value in leaves(list(yaml.safe_load_all(text))):
            if SECRET.search(path[-1]) and path[-1] not in NO_SECRET and "secretKeyRef" not in path:
                assert str(value).startswith(("${", "~/")) or "metadata" in path, f"{'.'.join(path)}: {value}"


def leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it; an environment variable's `value` goes by the variable's name."""
    if isinstance(tree, dict):
        if "name" in tree and "value" in tree:
            return [((*path, tree["name"]), tree["value"])]
        return [leaf for key, value in tree.items() for leaf in leaves(value, (*path, str(key)))]
    if isinstance(tree, list):
        return [leaf for i, value in enumerate(tree) for leaf in leaves(value, (*path, str(i)))]
    return [(path or ("",), tree)]


def test_a_secret_would_be_found():
    assert (("env", "0", "MLFLOW_PASSWORD"), "x") in leaves({"env": [{"name": "MLFLOW_PASSWORD", "value": "x"}]})
    assert SECRET.search("MLFLOW_PASSWORD")
    assert SECRET.search("AWS_ACCESS_KEY_ID")
