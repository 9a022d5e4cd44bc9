"""Uploads of a student, to a hub on this machine."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
from fake_hub import running_hub
from huggingface_hub import constants
from rich.console import Console
from tiny import reviews_job

from raykd.common.errors import ConfigError
from raykd.config.load import build, override
from raykd.experiment.command import run_experiment
from raykd.models.hub import check_push
from raykd.plan.prepare import prepare
from raykd.search import sweep


@pytest.fixture
def run_folder(tmp_path):
    """What a run leaves: results, and a student with its card."""
    model = tmp_path / "model"
    model.mkdir()
    for name, content in (("config.json", "{}"), ("model.safetensors", "weights"), ("README.md", "# card")):
        (model / name).write_text(content)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"student": {"name": "s", "model": str(model)}}))
    return folder


def push(url, *arguments, **more):
    """In its own process, because the hub's address and the mode without one are read on import."""
    env = os.environ | {"HF_ENDPOINT": url, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0", **more}
    command = [sys.executable, "-m", "raykd", "push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_the_best_student_of_a_run(run_folder):
    with running_hub() as hub:
        done = push(hub.url, run_folder, "me/student", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == f"{hub.url}/me/student"
    assert hub.private == {"me/student": True}
    expected = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"# card"}
    assert hub.files["me/student"] == expected


def test_who_can_see_a_student_is_the_owners_own_setting(run_folder):
    """Without --private, an organisation's default can be private: "public" would override it."""
    with running_hub() as hub:
        assert push(hub.url, run_folder, "me/student").returncode == 0
    assert hub.asked == [{}]


def test_an_adapter_that_names_a_path_of_this_machine_is_not_uploaded(run_folder):
    model = run_folder.parent / "model"
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/clients/bert"}))
    with running_hub() as hub:
        done = push(hub.url, run_folder, "me/student")
    assert done.returncode == 1
    assert "/home/me/clients/bert" in done.stderr
    assert hub.files == {}


@pytest.mark.parametrize(
    ("refuse", "repository", "more", "named"),
    [
        (401, "me/student", {}, "HF_TOKEN"),
        (0, "not a name", {}, "you/model"),
        (0, "me/student", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
    ],
    ids=["refused", "name", "offline"],
)
def test_an_upload_that_fails_says_how_to_repeat_it(run_folder, refuse, repository, more, named):
    with running_hub(refuse) as hub:
        done = push(hub.url, run_folder, repository, **more)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert named in line
    assert f"raykd push {run_folder.parent / 'model'} {repository}" in line
    assert "hf_secret" not in line


def test_a_folder_without_a_model_is_refused(tmp_path):
    done = push("http://127.0.0.1:1", tmp_path, "me/student")
    assert done.returncode == 2
    assert "safetensors" in done.stderr


@pytest.fixture
def logged_out(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


def test_a_name_that_the_hub_does_not_take_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError) as error:
        prepare(build(override(reviews_job(tmp_path), {"student.push_to_hub": "you//x"})))
    assert (error.value.key, error.value.value) == ("student.push_to_hub", "you//x")


@pytest.mark.parametrize("run", [partial(run_experiment, command="distill"), sweep.run], ids=["distill", "sweep"])
def test_without_a_token_nothing_is_trained(tmp_path, logged_out, run):
    config = build(override(reviews_job(tmp_path), {"student.push_to_hub": "you/x"}))
    with pytest.raises(ConfigError) as error:
        run(config, console=Console())
    assert (error.value.key, error.value.value) == ("student.push_to_hub", "you/x")
    assert not (tmp_path / "runs").exists()
    prepare(config)  # of `raykd check` and `raykd teach`, which upload nothing


def test_a_token_or_no_upload_is_all_right(tmp_path, logged_out, monkeypatch):
    tree = reviews_job(tmp_path)
    check_push(build(tree))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    uploads = build(override(tree, {"student.push_to_hub": "you/x"}))
    check_push(uploads)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        check_push(uploads)
