"""Hosts with addresses of their own that share nothing but one folder and a bucket; they are killed, and cut off."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import ROWS, STEPS, Experiment, write_job
from networks import NET, Host, network
from object_store import KEY, SECRET, object_store
from processes import until
from ray_head import ray_head

pytestmark = pytest.mark.cluster
CUT = 20.0  # seconds
CACHE_GB = 0.000325  # holds the logits of one run and not of all
SECURED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "d" * 64}
# As in cluster/: Ray's own 300 and 120 s are how long a call waits for an answer that the cut has swallowed.
SECURED |= {"RAY_grpc_client_keepalive_time_ms": "20000", "RAY_grpc_client_keepalive_timeout_ms": "20000"}
SECURED |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
TRAINS = rf"^student\b.* [12][05]/{STEPS} validation"  # in the middle of its epoch, with a checkpoint


class Hosts:
    """A head that does no work, and by name: a host for the teachers, two for the student."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack, self.own = stack, folder
        self.shared = stack.enter_context(network())
        self.bucket = stack.enter_context(object_store(f"{NET}.1"))
        self.head = stack.enter_context(ray_head(folder, SECURED, cpus=0, host=f"{NET}.1"))
        self.by_name: dict[str, Host] = {}
        self.number = 1
        for name in ("teachers", "first", "second"):
            self.add(name)

    def add(self, name: str) -> None:
        self.number += 1
        cpus, pool = (2, "teachers") if name == "teachers" else (1, "students")
        self.by_name[name] = Host(self.number, self.head.gcs, self.head.environment, cpus, pool)
        self.stack.callback(self.by_name[name].remove)

    def replace(self, name: str) -> None:
        """It is killed, and another one comes in its place."""
        self.by_name[name].remove()
        self.add(name)

    def start(self, name: str) -> Experiment:
        """Its data is on the head alone; trained models go through the shared folder, logits through the bucket."""
        self.bucket.requests.clear()
        logits = {"storage": self.bucket.new_uri(), "cache_gb": CACHE_GB}
        run = Experiment(write_job(self.own, self.shared / name, logits=logits), self.head.gcs, SECURED)
        self.stack.callback(run.process.kill)
        return run


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def calm(hosts) -> SimpleNamespace:
    """The run that nothing disturbs: its results, and the bytes of logits that each host has kept of it."""
    results = hosts.start("calm").results()
    return SimpleNamespace(results=results, kept={name: cached(host) for name, host in hosts.by_name.items()})


def cached(host: Host) -> int:
    return sum(path.stat().st_size for path in host.files("raykd-*/**/*.block"))


def spilled(host: Host) -> list[Path]:
    return [path for path in host.files("**/*spilled*/*") if path.is_file()]


def test_copies_of_logits_stay_under_their_limit(hosts, calm):
    """A teachers' host has those that it wrote, a student's those that it read, which are few if it was fast."""
    assert all(0 < kept <= CACHE_GB * 1e9 for kept in calm.kept.values()), calm.kept


def test_a_link_that_is_cut_changes_nothing(hosts, calm):
    run = hosts.start("cut")
    run.until_it_says(TRAINS)
    cut = hosts.by_name["second"]
    cut.cut()
    time.sleep(CUT)
    cut.mend()
    assert run.results() == calm.results
    assert f"node {cut.address} (pool=students) does not answer" in run.text
    for host in hosts.by_name.values():
        assert cached(host) <= CACHE_GB * 1e9
        assert spilled(host) == []
    assert 2 * calm.kept["teachers"] > CACHE_GB * 1e9, "there, copies of the run before have made way"


def test_hosts_that_are_killed_change_nothing(hosts, calm):
    """The teachers' in the middle of the fill, one of the student's in the middle of its epoch; others come."""
    run = hosts.start("killed")
    until(lambda: hosts.bucket.count("PUT") >= 5 or run.process.poll() is not None)
    assert hosts.bucket.count("PUT") < ROWS / 32
    hosts.replace("teachers")
    run.until_it_says(TRAINS)
    hosts.replace("second")
    assert run.results() == calm.results
    assert cached(hosts.by_name["first"]) <= CACHE_GB * 1e9
    assert run.text.count("is gone") == 2
    assert "resuming at step" in run.text


def test_what_is_not_shared_is_told(hosts, tmp_path):
    """Each host has a /tmp of its own: trainings there would be lost."""
    run = Experiment(write_job(hosts.own, tmp_path / "own"), hosts.head.gcs, SECURED)
    hosts.stack.callback(run.process.kill)
    until(lambda: run.process.poll() is not None)
    assert run.process.returncode == 2, run.text
    assert f"output = {tmp_path}/own: the node {NET}." in run.text
    assert not list((tmp_path / "own" / "store" / "trainings").glob("*")), "nothing was started"
