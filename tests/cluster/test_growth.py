"""A cluster that grows and shrinks: Ray's own autoscaler; gcp.yaml's nodes are raylets on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]
LIMIT = 120
HEAD = "ray.head.default"  # so the provider that plays the nodes calls it
DRIVER = """
import os, sys, time
import ray
from raykd.loading import load
from raykd.placement import check_room
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
limit = time.monotonic() + float(sys.argv[1])
pools = lambda: sorted(node["Labels"].get("pool", "head") for node in ray.nodes() if node["Alive"])
assert pools() == ["head"], pools()
check_room(load("jobs/digits_sweep.yaml", sys.argv[2:]))
print(*pools(), flush=True)
while pools() != ["head"]:
    assert time.monotonic() < limit, pools()
    time.sleep(0.2)
print(*pools())
"""

pytestmark = pytest.mark.cluster


def test_it_grows_to_what_the_job_needs_and_lets_it_go(tmp_path):
    ports = free_ports(3)
    groups = yaml.safe_load((TOP / "cluster" / "gcp.yaml").read_text())["available_node_types"]
    types = {name: groups[name] | {"node_config": {}} for name in ("teachers", "students")}
    types[HEAD] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {"type": "fake_multinode", "launch_multiple": True, "head_node_id": "f" * 51 + "00000"}
    config = {"cluster_name": "played", "max_workers": 8, "idle_timeout_minutes": 0.1, "head_node_type": HEAD}
    config |= {"available_node_types": types, "provider": provider | {"gcs_address": f"127.0.0.1:{ports[0]}"}}
    path = tmp_path / "autoscaling.yaml"
    path.write_text(json.dumps(config))
    played = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": provider["head_node_id"],
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": provider["head_node_id"],
        "RAY_NODE_TYPE_NAME": HEAD,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
    command += ["--node-ip-address=127.0.0.1", f"--port={ports[0]}", f"--dashboard-port={ports[1]}"]
    command += [f"--ray-client-server-port={ports[2]}", "--dashboard-agent-listen-port=0"]
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen([*command, f"--autoscaling-config={path}"], env=os.environ | played, stdout=log, stderr=log)
    try:
        environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{ports[0]}", "PYTHONPATH": str(TOP)}
        job = ["teachers.*.node_labels={pool: teachers}", "teachers.*.num_cpus=2", "student.num_cpus=6"]
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(LIMIT), *job, f"ray.wait_s={LIMIT}"],
            env=environment, cwd=TOP, capture_output=True, text=True, timeout=2 * LIMIT,
        )  # fmt: skip
        assert done.stdout.splitlines() == ["head students teachers", "head"], done.stderr + Path(log.name).read_text()
    finally:
        for pid in [*descendants(head.pid), head.pid]:  # the nodes that are played are below it, too
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        head.wait(LIMIT)


def free_ports(count: int) -> list[int]:
    """Ones that Ray's workers do not use (10002 to 19999)."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(4 * count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return [port for port in ports if not 10002 <= port <= 19999][:count]


def descendants(pid: int) -> list[int]:
    children = [int(p) for path in Path(f"/proc/{pid}/task").glob("*/children") for p in path.read_text().split()]
    return [*children, *(d for child in children for d in descendants(child))]
