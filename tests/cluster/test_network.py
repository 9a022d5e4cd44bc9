"""Hosts with addresses of their own that share nothing but one folder."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import Experiment, write_job
from networks import NET, Host, network
from ray_head import ray_head, until

pytestmark = pytest.mark.cluster
SECURED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "d" * 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[SimpleNamespace]:
    with ExitStack() as stack:
        shared = stack.enter_context(network())
        head = stack.enter_context(ray_head(tmp_path_factory.mktemp("head"), SECURED, cpus=0, host=f"{NET}.1"))
        hosts = {}
        for number, (name, cpus) in enumerate({"teachers": 2, "first": 1, "second": 1}.items(), start=2):
            pool = "teachers" if name == "teachers" else "students"
            hosts[name] = Host(number, head.gcs, head.environment, cpus, pool)
            stack.callback(hosts[name].remove)
        yield SimpleNamespace(shared=shared, head=head, folder=tmp_path_factory.mktemp("own"), **hosts)


def test_what_is_not_shared_is_told(made, tmp_path):
    """Each host has a /tmp of its own: trainings there would be lost."""
    job = write_job(made.folder, tmp_path / "own")
    run = Experiment(job, made.head.gcs, SECURED)
    until(lambda: run.process.poll() is not None)
    assert run.process.returncode == 2, run.text
    assert f"output = {tmp_path}/own: the node {NET}." in run.text
    assert not list(Path(tmp_path / "own" / "store" / "trainings").glob("*")), "nothing was started"
