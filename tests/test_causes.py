"""Why something on Ray has failed: real processes that are killed by a signal or end at a limit."""

import signal
import time
from types import SimpleNamespace

import pytest
import ray
from processes import LIMIT

from raykd.cluster.causes import cause_of
from raykd.cluster.resources import Resources
from raykd.common.errors import TrainingError
from raykd.experiment.on_worker import on_worker

WORK = SimpleNamespace(config=SimpleNamespace(ray=SimpleNamespace(cluster=True, max_retries=1)), start_ray=lambda: None)


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
