"""Placement over nodes with (logical) GPUs, and the loss of such a node: real raylets that are really killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from odd_teacher import LIMIT, at_work, config_of, files, make, odd, three, until
from processes import descendants, kill

from raykd.cluster.flags import Flag
from raykd.cluster.placement import check_room
from raykd.cluster.resources import Resources
from raykd.common.errors import ConfigError, TrainingError
from raykd.config.schema import RayConfig
from raykd.config.search import SearchConfig
from raykd.data.encoding import id_column
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.search.journal import Trial
from raykd.search.trial_spec import TrialSpec
from raykd.search.tuner import search
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.pool import TeacherPool
from raykd.training.access import Training
from raykd.training.events import Evaluated, Event, LogitsMissing, Started
from raykd.training.launch import run_trainings

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


# What `ray start --address` does, without its making this Ray the machine's default one, for whoever starts another.
# Ray gives a node 30 s, which a loaded machine may exceed: it is tried until the fixture gives up.
JOIN = """
import json, sys, time
import ray, psutil
from ray._private.node import Node
from ray._private.parameter import RayParams
while True:
    try:
        Node(RayParams(**json.loads(sys.argv[1])), head=False, shutdown_at_exit=True, spawn_reaper=False)
        break
    except Exception as error:
        print(error, file=sys.stderr)
        for process in psutil.Process().children(recursive=True):
            process.kill()
time.sleep(1e6)
"""


class GpuNode:
    """A raylet of two CPUs and two logical L4s that joins the session's Ray."""

    def __init__(self, zone: str) -> None:
        has = {"num_cpus": 2, "num_gpus": 2, "resources": {"accelerator_type:L4": 1}, "object_store_memory": 10**8}
        given = {"gcs_address": ray.get_runtime_context().gcs_address, "include_log_monitor": False}
        given |= {"min_worker_port": 0, "max_worker_port": 0, "dashboard_agent_listen_port": None}
        text = json.dumps(has | given | {"labels": {"pool": "spot", "zone": zone}})
        self.process = subprocess.Popen([sys.executable, "-c", JOIN, text], start_new_session=True)

    def kill(self) -> None:
        """As when its machine goes: all of its processes at once."""
        kill(self.process)


def gpu_nodes() -> dict[str, str]:
    """The nodes with GPUs that are alive: id to zone."""
    return {n["NodeID"]: n["Labels"]["zone"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    made = make(tmp_path_factory.mktemp("nodes"))
    made.tree["teachers"][0] |= {"num_gpus": 0.5, "num_cpus": 0.5, "accelerator": "L4"}
    made.tree["student"]["num_gpus"] = 0
    return made


@pytest.fixture(scope="module")
def nodes(made) -> Iterator[dict[str, GpuNode]]:
    """By zone. They come while a check waits for them, as on a cluster that grows."""
    with pytest.raises(ConfigError, match=r"teachers.a.num_cpus = 0.5 CPU, 0.5 GPU, L4: .* 1 node"):
        check_room(config_of(made, ray__wait_s=0.5))
    found: dict[str, GpuNode] = {}

    def start() -> None:
        for zone in "xy":  # one after the other: on one machine they would take the same socket
            found[zone] = GpuNode(zone)
            until(lambda zone=zone: zone in gpu_nodes().values())

    starting = threading.Thread(target=start)
    starting.start()
    try:
        check_room(config_of(made, ray__wait_s=LIMIT, teachers__a__replicas=8))
        starting.join()
        yield found
    finally:
        starting.join()
        for node in found.values():
            node.kill()
        until(lambda: not gpu_nodes())


def test_errors_name_the_nodes_resources(made, nodes):
    check_room(config_of(made, teachers__a__replicas=8))
    check_room(config_of(made, teachers__a__node_labels={"zone": "x"}, teachers__a__replicas=4))
    for changes, wanted in (
        ({"replicas": 9}, r"9 replicas of 0.5 CPU, 0.5 GPU, L4: .* 2 GPU, L4, pool=spot, zone=[xy]"),
        ({"node_labels": {"zone": "z"}}, r"0.5 CPU, 0.5 GPU, L4, zone=z: "),
        ({"node_labels": {"zone": "x"}, "replicas": 5}, r"5 replicas of 0.5 CPU, 0.5 GPU, L4, zone=x: "),
        ({"num_gpus": 0.6, "replicas": 5}, "5 replicas of 0.5 CPU, 0.6 GPU, L4: "),
        ({"accelerator": "H100"}, "0.5 CPU, 0.5 GPU, H100: "),
    ):
        with pytest.raises(ConfigError, match=wanted):
            check_room(config_of(made, **{f"teachers__a__{key}": value for key, value in changes.items()}))
    check_room(config_of(made, student__node_labels={"zone": "y"}, student__accelerator="L4", student__workers=2))
    with pytest.raises(ConfigError, match=r"student.num_cpus = 3 workers of 1 CPU, 0 GPU, zone=y each: "):
        check_room(config_of(made, student__node_labels={"zone": "y"}, student__workers=3))


@pytest.mark.parametrize("as_trial", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_students_go_where_their_labels_are(made, nodes, tmp_path, as_trial):
    """As a task of their own, and as a trial of Tune's. Several workers: tests/cluster/test_network.py."""
    labels, output = {"zone": "y"}, str(tmp_path / "runs")
    config = config_of(made, student__node_labels=labels, student__accelerator="L4", output=output)
    size = Resources.of(config.student, 0)
    training = Training(student_jobs(config, prepare(config), FINETUNE, ())[0], size)
    trained: list[Event] = []
    if as_trial:
        left, ends = [TrialSpec(Trial("a", 0, {}, 0), training, "accuracy", False)], []
        trials = SimpleNamespace(
            next_trial=lambda: left.pop() if left else None,
            on_result=lambda spec, events, result: trained.extend(events),
            on_end=lambda spec, outcome, reason, permanent: ends.append(outcome),
            teachers_work=lambda: False,
        )
        search(
            trials,
            SearchConfig(),
            RayConfig(),
            1,
            Flag(config.store, "stop"),
            lambda: False,
            config.folder,
        )
        assert ends == ["finished"]
    else:
        assert not run_trainings([training], config.ray, lambda _, event: trained.append(event))
    pids = [event.pid for event in trained if isinstance(event, Started)]
    assert len(pids) == 1
    assert pids[0] in descendants(nodes["y"].process.pid)


def test_trainings_on_gpus_take_over_processes(made, nodes, tmp_path):
    """Three on a node with two GPUs. The first one's process is killed, so its next try, too, waits for a GPU."""
    labels, steps = {"zone": "y"}, {"steps": 200, "eval_every": 4}
    changes = {"student__seed": [0, 1, 2], "student__num_gpus": 1, "student__num_cpus": 0.5, "training": steps}
    config = config_of(made, student__node_labels=labels, output=str(tmp_path / "runs"), **changes)
    jobs = student_jobs(config, prepare(config), FINETUNE, ())
    starts: list[tuple[int, int]] = []  # each with its seed and its process
    killed: list[int] = []

    def on_event(job: Job, event: Event) -> None:
        if isinstance(event, Started):
            starts.append((job.seed, event.pid))
        if isinstance(event, Evaluated) and not killed:
            killed.append(dict(starts)[job.seed])
            os.kill(killed[0], signal.SIGKILL)

    size = Resources.of(config.student, 2)
    assert not run_trainings([Training(job, size) for job in jobs], config.ray, on_event)
    assert all(job.done for job in jobs)
    pids = [pid for _, pid in starts]
    assert len(pids) == 4
    assert pids.count(killed[0]) == 1
    assert len(set(pids)) < 4, "at least one has run two trainings"
    until(lambda: ray.available_resources().get("GPU") == 4)


def test_students_make_way_for_a_teacher_whose_logits_have_gone(made, nodes, tmp_path):
    """Each of the three students, and the teacher, needs all CPUs of one node. Students that wait let it go first."""
    there, output = {"node_labels": {"zone": "y"}, "num_gpus": 1, "num_cpus": 2}, str(tmp_path / "runs")
    sections = {"student": made.tree["student"] | there | {"seed": [0, 1, 2]}, "method": "kd", "output": output}
    config = config_of(made, **sections, **{f"teachers__a__{key}": value for key, value in there.items()})
    shutil.copytree(made.store.storage, LogitStore.of(config).storage)
    jobs = student_jobs(config, prepare(config), config.method, [made.served])
    work = TeacherWork(config.teachers[0], made.served, made.splits)
    pool = TeacherPool([work], LogitStore.of(config), config, 4, lambda progress: None)
    assert pool.idle
    for block in Path(LogitStore.of(config).storage).rglob("*.block"):
        block.unlink()
    lacking: list[int] = []

    def on_event(job: Job, event: Event) -> None:
        if isinstance(event, LogitsMissing):
            lacking.append(job.seed)

    size = Resources.of(config.student, 4)
    try:
        pool.start()
        trainings = [Training(job, size) for job in jobs]
        assert not run_trainings(trainings, config.ray, on_event, pool.check, pool.recomputed)
    finally:
        pool.close()
    assert all(job.done for job in jobs)
    assert lacking == [0], "the others had not begun"
    assert files(LogitStore.of(config)) == files(made.store)
    until(lambda: ray.available_resources().get("GPU") == 4)


def test_spread_replicas_share_gpus_and_let_them_go(made, nodes, tmp_path):
    config = config_of(made, teachers__a__replicas=2, teachers__a__placement="spread")
    served, store = odd(made.served, tmp_path / "odd"), LogitStore.at(tmp_path / "store")
    with at_work(made, config, served, store) as (pool, _):
        until(lambda: len(served.pids()) == 2, pool)
        assert {p["node"] for p in served.places()} == gpu_nodes().keys()
        assert all(len(p["gpus"]) == 1 for p in served.places())
        assert ray.available_resources()["GPU"] == 3
        served.go.touch()
        pool.wait()
        until(lambda: ray.available_resources().get("GPU") == 4)  # before `close`: the students' turn
    assert files(store) == files(made.store)


def test_a_waiting_teacher_takes_the_gpus_of_the_first_one_that_is_done(made, nodes, tmp_path):
    """And its process. Two GPUs for each of three, four in all."""
    pool, store, (a, b, c) = three(made, tmp_path, *3 * [{"num_gpus": 2, "num_cpus": 0.5}])
    assert [[group.name for group in round_] for round_ in pool.rounds] == [["a", "b"], ["c"]]
    try:
        pool.start()
        until(lambda: a.pids() and b.pids(), pool)
        assert not c.pids()
        a.go.touch()
        until(c.pids, pool)
        assert pool.progress[1].done == 0, "b is still at work"
        assert c.pids() == a.pids()
        assert c.places()[0] == a.places()[0]
        assert len(c.places()[0]["gpus"]) == 2
        for one in (b, c):
            one.go.touch()
        pool.wait()
    finally:
        pool.close()
    until(lambda: ray.available_resources().get("GPU") == 4)
    rows = made.splits["train"][1].open()
    ids = id_column(rows, "row_id"), id_column(rows, "input_hash")
    assert all(len(TeacherLogits(store, one.key).missing(*ids)) == 0 for one in (a, b, c))


def test_node_with_all_replicas_is_lost(made, nodes, tmp_path):
    """They stand on one node and go with it; others do the same on another one. Then that one goes, too."""
    config = config_of(made, teachers__a__replicas=2, teachers__a__node_labels={"pool": "spot"})
    served, store = odd(made.served, tmp_path / "odd"), LogitStore.at(tmp_path / "store")
    with at_work(made, config, served, store) as (pool, _):
        lost = until(lambda: len(served.pids()) == 2 and served.pids(), pool)
        (where,) = {p["node"] for p in served.places()}
        nodes[gpu_nodes()[where]].kill()
        until(lambda: pool.replica_groups[0].counts.restarts == 2, pool)
        for path in served.folder.glob("*.pid"):
            path.unlink()
        until(lambda: len(served.pids()) == 2, pool)
        assert where not in {p["node"] for p in served.places()}
        served.go.touch()
        pool.wait()
        assert files(store) == files(made.store)
        assert served.pids().isdisjoint(lost)

    again, other = odd(made.served, tmp_path / "again"), LogitStore.at(tmp_path / "other")
    with at_work(made, config_of(made), again, other) as (pool, _):
        until(again.pids, pool)
        nodes[gpu_nodes()[again.places()[0]["node"]]].kill()
        since = time.monotonic()
        assert pool.precompute_done.wait(LIMIT)
        with pytest.raises(TrainingError, match=r"teacher a: .*node is gone.*\(0.5 CPU"):
            pool.check()
        assert time.monotonic() - since < LIMIT
    assert files(other) == {}
