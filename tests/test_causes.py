"""Why something on Ray has failed: real processes that are killed by a signal, by Ray for memory, or by a limit."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import ray
from processes import LIMIT

from raykd.cluster.causes import cause_of
from raykd.cluster.local import LOCAL_RAY
from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError
from raykd.experiment.on_worker import on_worker

WORK = SimpleNamespace(config=SimpleNamespace(ray=SimpleNamespace(cluster=True)), start_ray=lambda: None)

FULL = """
import ray, time
from raykd.cluster.causes import cause_of

class Waits:
    def wait(self):
        time.sleep(600)

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, address="local")
waits = ray.remote(Waits).remote()
try:
    ray.get(waits.wait.remote())
except ray.exceptions.RayError as error:
    print(len(str(error).splitlines()))
    print(cause_of(error))
ray.shutdown()
"""


@pytest.mark.slow
def test_process_that_ray_ends_for_memory_is_called_that():
    """Every machine uses more than 0.01% of its memory, so this Ray ends the first process that it starts."""
    environment = (
        os.environ | LOCAL_RAY | {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "50"}
    )
    command = [sys.executable, "-c", FULL]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    lines, cause = output.splitlines()
    assert int(lines) > 10, "Ray says pages"
    assert "memory of its node" in cause
    assert " of " in cause
    assert "GB" in cause
    assert len(cause) < 120


@pytest.mark.usefixtures("ray_cluster")
def test_killed_process_is_one_short_line():
    error = ray.exceptions.ActorDiedError()
    assert cause_of(error) == "The actor died unexpectedly before finishing this task"
    with pytest.raises(TrainingError) as raised:
        on_worker(WORK, Resources(1, 1, 0.0), signal.raise_signal, signal.SIGKILL, LIMIT)
    assert "its process died (" in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.usefixtures("ray_cluster")
def test_task_that_exceeds_its_time_gives_its_resources_back():
    all_cpus = Resources(1, 4, 0.0)
    with pytest.raises(TrainingError, match="1 s"):
        on_worker(WORK, all_cpus, time.sleep, 2 * LIMIT, 1)
    assert on_worker(WORK, all_cpus, abs, -1, LIMIT) == 1
