"""Hosts with addresses of their own that share nothing but one folder and an object store; a link that is cut."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import STEPS, Experiment, write_job
from networks import NET, Host, network
from object_store import KEY, SECRET, object_store
from ray_head import ray_head, until

pytestmark = pytest.mark.cluster
CUT = 20.0  # seconds
CACHE_GB = 0.0003  # less than the logits that a node reads
SECURED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "d" * 64}
SECURED |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[SimpleNamespace]:
    with ExitStack() as stack:
        shared = stack.enter_context(network())
        bucket = stack.enter_context(object_store(f"{NET}.1"))
        head = stack.enter_context(ray_head(tmp_path_factory.mktemp("head"), SECURED, cpus=0, host=f"{NET}.1"))
        hosts = {}
        for number, (name, cpus) in enumerate({"teachers": 2, "first": 1, "second": 1}.items(), start=2):
            pool = "teachers" if name == "teachers" else "students"
            hosts[name] = Host(number, head.gcs, head.environment, cpus, pool)
            stack.callback(hosts[name].remove)
        yield SimpleNamespace(shared=shared, bucket=bucket, head=head, folder=tmp_path_factory.mktemp("own"), **hosts)


def start(made: SimpleNamespace, name: str, storage: str) -> Experiment:
    """Its data is on the head alone; trained models go through the shared folder, logits through the bucket."""
    job = write_job(made.folder, made.shared / name, logits={"storage": storage, "cache_gb": CACHE_GB})
    return Experiment(job, made.head.gcs, SECURED)


def cached(host: Host) -> int:
    return sum(path.stat().st_size for path in host.files("raykd-*/**/*.block"))


def test_a_link_that_is_cut_changes_nothing(made):
    calm = start(made, "calm", made.bucket.new_uri())
    results = calm.results()
    largest = max(cached(made.first), cached(made.second))
    assert 0 < largest <= CACHE_GB * 1e9
    assert not made.teachers.files("raykd-*/**/*.block"), "who computes blocks needs no copies"

    run = start(made, "storm", made.bucket.new_uri())
    run.until_it_says(rf"^student\b.* [12][05]/{STEPS} validation")
    made.second.cut()
    time.sleep(CUT)
    made.second.mend()
    assert run.results() == results
    for host in (made.teachers, made.first, made.second):
        assert not [path for path in host.files("ray/**/*spilled*") if path.is_file()]
        assert cached(host) <= CACHE_GB * 1e9


def test_what_is_not_shared_is_told(made, tmp_path):
    """Each host has a /tmp of its own: trainings there would be lost."""
    job = write_job(made.folder, tmp_path / "own")
    run = Experiment(job, made.head.gcs, SECURED)
    until(lambda: run.process.poll() is not None)
    assert run.process.returncode == 2, run.text
    assert f"output = {tmp_path}/own: the node {NET}." in run.text
    assert not list(Path(tmp_path / "own" / "store" / "trainings").glob("*")), "nothing was started"
