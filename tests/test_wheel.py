"""The package as its users install it: a wheel, away from the repository."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from raykd import __version__

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_in_a_clean_environment(tmp_path):
    """Only raykd itself is installed anew. What it depends on is this environment's, found after the wheel's files."""
    source = tmp_path / "source"  # a build leaves files where it runs
    shutil.copytree(ROOT / "raykd", source / "raykd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True, env=alone)
    (wheel,) = tmp_path.glob("raykd-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, env=alone)
    env = os.environ | {"PYTHONPATH": sysconfig.get_paths()["purelib"], "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import json, raykd; from pathlib import Path; where = Path(raykd.__file__).parent\n"
    code += "files = sorted(str(p.relative_to(where)) for p in where.rglob('*') if p.suffix in ('.j2', '.typed'))\n"
    code += "print(json.dumps([str(where), files]))"
    where, files = json.loads(run(str(python), "-I", "-c", code))  # -I: without PYTHONPATH
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert files == sorted(
        str(p.relative_to(ROOT / "raykd")) for p in (ROOT / "raykd").rglob("*") if p.suffix in (".j2", ".typed")
    )
    command = str(tmp_path / "venv" / "bin" / "raykd")
    assert run(command, "--version").startswith(f"raykd {__version__}")
    assert "everything is valid" in run(command, "check", str(ROOT / "jobs" / "digits.yaml"))


def test_the_metadata_say_what_people_look_for():
    about = importlib.metadata.metadata("raykd")
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    assert "knowledge distillation" in about["Keywords"]
