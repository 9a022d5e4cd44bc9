"""Only one command at a time can run an experiment, and its lock is released however it ends."""

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny import reviews_job

from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.config.schema import Config
from raykd.experiment import command as experiment
from raykd.experiment.exclusive import only_command
from raykd.search import sweep
from raykd.search.journal import Journal

HOLD = """
import sys
from raykd.experiment.exclusive import only_command
from raykd.config.load import load
with only_command(load(sys.argv[1], []), "sweep"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def reviews(tmp_path) -> Config:
    return build(reviews_job(tmp_path))


def run(config: Config, command: str) -> None:
    console = Console(file=io.StringIO())
    if "sweep" in command:
        sweep.run(config, console, resume="resumed" in command)
    else:
        experiment.run_experiment(config, command, console)


@pytest.mark.parametrize("command", ["sweep", "resumed sweep", "distill", "teach"])
def test_a_second_command_is_refused_before_it_changes_anything(reviews, command):
    """It names the first one's process and host, and neither waits nor touches the journal."""
    folder = reviews.folder
    with only_command(reviews, "distill"):
        journal = Journal(folder, reviews.model_dump(mode="json"), False)
        journal.close()
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(ConfigError) as refused:
            run(reviews, command)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert (refused.value.key, refused.value.value) == ("name", "reviews")
    for named in (f"process {os.getpid()} ", socket.gethostname(), "raykd distill"):
        assert named in refused.value.reason
    with only_command(reviews, command):
        pass


def test_another_experiment_is_free(reviews):
    with only_command(reviews, "sweep"), only_command(reviews.model_copy(update={"name": "other"}), "sweep"):
        pass


def test_a_killed_command_holds_nothing(tmp_path, reviews):
    import yaml

    (tmp_path / "job.yaml").write_text(yaml.safe_dump(reviews_job(tmp_path)))
    call = [sys.executable, "-c", HOLD, str(tmp_path / "job.yaml")]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"process {holder.pid} "), only_command(reviews, "sweep"):
            pass
        holder.send_signal(signal.SIGKILL)
    with only_command(reviews, "sweep"):
        assert f'"process": {os.getpid()}' in Path(reviews.folder / ".lock.json").read_text()
