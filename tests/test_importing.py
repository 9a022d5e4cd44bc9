"""Ray worker processes search for garbage seldom while they import, and as usual from their first task on."""

import gc

import pytest
import ray

from raykd.common.environment import begin_task


@pytest.mark.slow
def test_a_worker_process_collects_seldom_until_its_first_task(ray_cluster):
    def thresholds():
        import raykd.training.processes

        importing, _ = gc.get_threshold(), raykd.training.processes
        begin_task()
        return importing, gc.get_threshold(), gc.get_freeze_count()

    # An environment of its own, so that it is a new process.
    task = ray.remote(thresholds).options(runtime_env={"env_vars": {"RAYKD_TEST_OF_IMPORTS": "1"}})
    importing, then, frozen = ray.get(task.remote())
    assert importing[0] > 10 * then[0]
    assert then == gc.get_threshold()
    assert frozen > 100_000
