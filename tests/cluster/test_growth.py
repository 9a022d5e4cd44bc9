"""A cluster that grows and shrinks: Ray's own autoscaler; gcp.yaml's nodes are raylets on this machine."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from processes import free_ports, kill, until

TOP = Path(__file__).parents[2]
LIMIT = 120
HEAD = "ray.head.default"  # so the provider that plays the nodes calls it
HEAD_ID = "f" * 51 + "00000"
PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "head_node_id": HEAD_ID,
    "launch_multiple": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
LISTS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
LISTS += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
PLAYED = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",  # as in `ray up`
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD,
}
DRIVER = """
import os, sys, time
import ray
from raykd.config.load import load
from raykd.cluster.placement import check_room
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
limit = time.monotonic() + float(sys.argv[1])
pools = lambda: sorted(node["Labels"].get("pool", "head") for node in ray.nodes() if node["Alive"])
assert pools() == ["head"], pools()
check_room(load("jobs/digits_sweep.yaml", sys.argv[2:]))
print("pools:", *pools(), flush=True)
while pools() != ["head"]:
    assert time.monotonic() < limit, pools()
    time.sleep(0.2)
print("pools:", *pools())
"""

pytestmark = pytest.mark.cluster


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    """Of a driver: there is a head, and groups of nodes that may come."""
    port, *others = free_ports(3)
    groups = yaml.safe_load((TOP / "cluster" / "gcp.yaml").read_text())["available_node_types"]
    types = {name: groups[name] | {"node_config": {}} for name in ("teachers", "students")}
    types[HEAD] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {"cluster_name": "played", "max_workers": 8, "idle_timeout_minutes": 0.1, "upscaling_speed": 1.0}
    config |= {"available_node_types": types, "head_node_type": HEAD} | {key: [] for key in LISTS}
    config |= {"provider": PROVIDER | {"gcs_address": f"127.0.0.1:{port}"}, "auth": {}, "file_mounts": {}}
    (tmp_path / "autoscaling.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={others[0]}"]
    command += [f"--ray-client-server-port={others[1]}", "--dashboard-agent-listen-port=0"]
    command += [f"--autoscaling-config={tmp_path / 'autoscaling.yaml'}"]
    with TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # a short path, for sockets
        own = os.environ | {"RAY_TMPDIR": folder}
        head = subprocess.Popen(command, env=own | PLAYED)
        try:
            until(lambda: head.poll() is not None or listens(port))  # a driver gives it only seconds to start
            yield own | {"RAY_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": str(TOP)}
        finally:
            kill(head)  # the nodes that are played are below it, too


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_it_grows_to_what_the_job_needs_and_lets_it_go(environment):
    job = ["teachers.*.node_labels={pool: teachers}", "teachers.*.num_cpus=2"]
    job += ["student.node_labels={pool: students}"]
    command = [sys.executable, "-c", DRIVER, str(LIMIT), *job, f"ray.wait_s={LIMIT}"]
    done = subprocess.run(command, env=environment, cwd=TOP, stdout=subprocess.PIPE, text=True, timeout=2 * LIMIT)
    printed = [line for line in done.stdout.splitlines() if line.startswith("pools:")]  # Ray writes there, too
    assert printed == ["pools: head students teachers", "pools: head"], done.stdout
