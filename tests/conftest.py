"""One Ray for the whole session, tiny real models, and a home that tests may write to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside one another
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)

from raykd.environment import set_environment

set_environment()

# What takes longest is begun first, or one process would still be at it when the others have nothing left.
LONG = ("test_network.py", "servers: sqlite", "servers: postgresql", "killed driver", "test_jobs.py", "test_sweep.py")
LONG += ("test_pool.py", "test_experiment.py", "test_estimate.py", "swept", "test_service.py", "test_student.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay in one process where several share them: those of a file, or of a group that is named."""

    def group(item: pytest.Item) -> str:
        if "swept" in getattr(item, "fixturenames", ()):  # one sweep that several files look at
            return "swept"
        named = item.get_closest_marker("xdist_group")
        return named.args[0] if named else item.path.name

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)), append=False)
    items.sort(key=lambda item: LONG.index(group(item)) if group(item) in LONG else len(LONG))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four CPUs (logical ones: a worker here takes one), stopped at the end."""
    import ray

    soon = {"metrics_report_interval_ms": 1000, "health_check_period_ms": 1000}  # what tests wait for comes sooner
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning", _system_config=soon)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: its migrations take seconds, a copy of it does not."""
    from raykd.tracking import Tracking

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracking(f"sqlite:///{path}", "empty")
    return path
