"""A head and worker nodes, each a raylet of its own (`ray.cluster_utils.Cluster`), that are really killed."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import STEPS, Experiment, write_job
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.cluster
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c" * 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The cluster: a head that does no work, a node for the teachers, two for the student; and a folder for all."""
    from ray.util.state import list_nodes  # noqa: F401 (fails at once where ray[default] is missing)

    patch = pytest.MonkeyPatch()
    for name, value in TOKEN.items():
        patch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = SimpleNamespace(cluster=cluster, folder=tmp_path_factory.mktemp("shared"))
    nodes.teachers = add(cluster, 2, "teachers")
    nodes.first, nodes.second = add(cluster, 1, "students"), add(cluster, 1, "students")
    try:
        yield nodes
    finally:
        cluster.shutdown()
        patch.undo()


def add(cluster: Cluster, cpus: int, pool: str) -> object:
    return cluster.add_node(num_cpus=cpus, labels={"pool": pool}, object_store_memory=100 * 2**20)


@pytest.fixture(scope="module")
def undisturbed(made) -> dict:
    return Experiment(write_job(made.folder, made.folder / "calm"), made.cluster.address, TOKEN).results()


def spilled(session: Path) -> list[Path]:
    return [path for path in session.rglob("*") if "spilled" in path.name and path.is_file()]


def test_nodes_that_are_killed_change_nothing(made, undisturbed):
    """The teachers' in the middle of the fill, one of the student's in the middle of its epoch; others come."""
    run = Experiment(write_job(made.folder, made.folder / "storm"), made.cluster.address, TOKEN)
    run.until_it_fills()
    made.cluster.remove_node(made.teachers, allow_graceful=False)
    made.teachers = add(made.cluster, 2, "teachers")
    run.until_it_says(rf"^student\b.* [12][05]/{STEPS} validation")
    made.cluster.remove_node(made.second, allow_graceful=False)
    made.second = add(made.cluster, 1, "students")
    assert run.results() == undisturbed
    assert "died" in run.text or "lost" in run.text
    assert "goes on at step" in run.text
    assert spilled(Path(made.cluster.head_node.get_session_dir_path())) == [], "the object store was large enough"
