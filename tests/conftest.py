"""One Ray for the whole session, tiny real models, and a home that tests may write to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside one another
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)

from raykd.common.environment import set_environment

set_environment()

# Several processes share the tests file by file. The longest files are begun first, or one process would still be at
# one of them when the others have nothing left.
LONG = ("test_network", "test_jobs", "test_servers", "test_swept", "test_killed_sweep", "test_sweep", "test_experiment")
LONG += ("test_pool", "test_estimate", "test_api", "test_service", "test_student", "test_every_token", "test_cli")
LONG += ("test_compose_server", "test_resumed", "test_nodes", "test_cached")


# A busy machine is slow to draw values, which says nothing about the code.
settings.register_profile("raykd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raykd")

CLUSTER_SECONDS = 1800  # of a test with nodes and servers of its own: those take turns on few cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.timeout(CLUSTER_SECONDS))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four CPUs (logical ones: a worker here takes one), stopped at the end."""
    import ray

    from raykd.cluster.local import LOCAL_RAY
    from raykd.models import serving_cost

    serving_cost.ONE_ROW_SECONDS = serving_cost.BATCH_SECONDS = 0.05  # a second for each model of each experiment
    for name, value in LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    soon = {"health_check_period_ms": 1000}  # tests wait for Ray to notice what has died
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning", "_system_config": soon}
    for tries_left in (2, 1, 0):
        try:
            ray.init(num_cpus=4, **options)
            break
        except Exception:  # Ray gives its node 30 s to start, which a loaded machine may exceed
            if not tries_left:
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: its migrations take seconds, a copy of it does not."""
    from raykd.tracking.experiment import Tracking

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracking(f"sqlite:///{path}", "empty")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder of the user's own modules, which the command runs in."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # before those of other tests
    return folder
