"""aws.yaml, gcp.yaml and on_prem.yaml, as `ray up` itself reads them; AWS's is carried on to machines that moto plays.

Google's part of gcp.yaml (`node_config`) is held against a subset of its compute API's schema, written down here.
"""

import copy
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import yaml
from moto import mock_aws
from moto.ec2.models.instance_types import InstanceTypeBackend
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config

from raykd.cluster.placement import fits
from raykd.cluster.resources import Resources
from raykd.config.load import build, override, read_yaml

TOP = Path(__file__).parents[2]
CLOUDS = ("aws.yaml", "gcp.yaml")
ALL = (*CLOUDS, "on_prem.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((TOP / "cluster" / name).read_text())


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    """`ray up` writes keys below the home folder and keeps its state in the temporary one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("name", ALL)
def test_ray_takes_it(name):
    prepared = prepare_config(read(name))
    if name == "aws.yaml":  # what AWS is asked for; see below
        assert all(node.get("resources") is not None for node in prepared["available_node_types"].values())
    validate_config(prepared)
    assert prepared["head_setup_commands"] == read(name)["setup_commands"]


def test_ray_refuses_what_is_wrong():
    wrong = read("aws.yaml")
    wrong["available_node_types"]["teachers"]["label"] = {"pool": "teachers"}
    with pytest.raises(jsonschema.ValidationError, match="'label' was unexpected"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", CLOUDS)
def test_groups(name):
    config = prepare_config(read(name))
    nodes = config["available_node_types"]
    assert nodes[config["head_node_type"]]["resources"] == {"CPU": 0}
    for group in ("teachers", "students"):
        assert nodes[group]["labels"] == {"pool": group}
        assert nodes[group]["min_workers"] == 0
    assert config["max_workers"] >= sum(nodes[group]["max_workers"] for group in ("teachers", "students"))


@pytest.fixture
def aws(monkeypatch) -> Iterator[dict[str, Any]]:
    """aws.yaml as `ray up` has resolved it: subnets, security group, key, and what the machine types have."""
    used = {node["node_config"]["InstanceType"] for node in read("aws.yaml")["available_node_types"].values()}
    known = [kind for kind in InstanceTypeBackend.instance_types if kind["InstanceType"] in used]
    monkeypatch.setattr(InstanceTypeBackend, "instance_types", known)  # all thousand of them take moto ten seconds
    with mock_aws():
        iam = boto3.client("iam", "us-west-2")
        iam.create_role(RoleName="ray-autoscaler-v1", AssumeRolePolicyDocument="{}")  # else Ray waits for half a minute
        iam.create_instance_profile(InstanceProfileName="ray-autoscaler-v1")
        iam.add_role_to_instance_profile(InstanceProfileName="ray-autoscaler-v1", RoleName="ray-autoscaler-v1")
        yield _bootstrap_config(read("aws.yaml"), no_config_cache=True)


def test_on_aws(aws):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    nodes = aws["available_node_types"]
    assert nodes["teachers"]["resources"].items() >= {"CPU": 4, "GPU": 1, "accelerator_type:L4": 1}.items()
    assert nodes["students"]["resources"].items() >= {"CPU": 8, "GPU": 1, "accelerator_type:L40S": 1}.items()
    check_places("aws.yaml", nodes)
    provider = AWSNodeProvider(aws["provider"], "raykd")
    for group, spot in (("teachers", True), ("students", False)):
        made = provider.create_node(nodes[group]["node_config"], {"ray-user-node-type": group}, 1)
        assert [node.instance_lifecycle == "spot" for node in made.values()] == [spot]
    (group,) = boto3.client("ec2", "us-west-2").describe_security_groups(
        GroupIds=nodes["head"]["node_config"]["SecurityGroupIds"]
    )["SecurityGroups"]
    assert group["GroupName"] == "ray-autoscaler-raykd"
    from_anywhere = [rule["FromPort"] for rule in group["IpPermissions"] if rule.get("IpRanges")]
    assert from_anywhere == [22], "only SSH is open to the world"


def test_on_gcp():
    nodes = read("gcp.yaml")["available_node_types"]
    for node in nodes.values():
        jsonschema.validate(node["node_config"], INSTANCE)
    assert nodes["teachers"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in nodes["students"]["node_config"]["scheduling"]
    check_places("gcp.yaml", nodes)
    wrong = copy.deepcopy(nodes["teachers"]["node_config"]) | {"scheduling": [{"preemptible": True}]}
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'object'"):
        jsonschema.validate(wrong, INSTANCE)


def check_places(name: str, nodes: dict[str, Any]) -> None:
    """With what the files say of jobs, teachers go to their nodes alone, and students to theirs."""
    text = (TOP / "cluster" / name).read_text()
    assert "teachers.*.node_labels={pool: teachers}" in text
    assert "student.node_labels={pool: students}" in text
    job = read_yaml(TOP / "jobs" / "digits_sweep.yaml")
    values = {"teachers.*.node_labels": {"pool": "teachers"}, "student.node_labels": {"pool": "students"}}
    config = build(override(job, values))
    has = {group: [(node["resources"], node.get("labels", {}))] for group, node in nodes.items()}
    teacher, student = Resources.of(config.teachers[0], 1), Resources.of(config.student, 1)
    assert [group for group in has if fits([teacher], has[group])] == ["teachers"]
    assert [group for group in has if fits([student], has[group])] == ["students"]


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # from within Ray
@pytest.mark.parametrize("name", ALL)
def test_commands(name):
    config = read(name)
    for command in (c for key, value in config.items() if key.endswith("_commands") for c in value):
        subprocess.run(["bash", "-n", "-c", command], check=True)
    (head,), (worker,) = ray_starts(config["head_start_ray_commands"]), ray_starts(config["worker_start_ray_commands"])
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    if name == "on_prem.yaml":
        assert (head["num_cpus"], head["num_gpus"], worker["labels"]) == (0, 0, "pool=$pool")
    for ports in (head, worker):
        assert all(not 10002 <= value <= 19999 for key, value in ports.items() if key in OWN_PORTS and value)


OWN_PORTS = ("port", "object_manager_port", "node_manager_port", "dashboard_port", "ray_client_server_port")


def ray_starts(commands: list[str]) -> list[dict[str, Any]]:
    """The options of each `ray start`, as its own command line reads them."""
    from ray.scripts.scripts import start

    found = []
    for command in commands:
        before, marker, options = command.partition("ray start ")
        if marker:
            assert "RAY_AUTH_MODE=token" in before
            assert ". ~/.raykd.env" in before
            found.append(start.make_context("ray start", shlex.split(options)).params)
    return found


@pytest.mark.parametrize("name", ALL)
def test_nodes_get_the_token_and_the_pinned_versions(name):
    config = read(name)
    mounts = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    local = [path for path in mounts.values() if not path.startswith("~")]
    assert all((TOP / path).exists() for path in local)
    assert {"raykd", "pyproject.toml", "constraints.txt", "README.md"} == set(local)
    assert any("-c ~/raykd/constraints.txt ~/raykd" in command for command in config["setup_commands"])
    assert any(command.startswith("chmod 600 ~/.ray/auth_token ~/.raykd.env") for command in config["setup_commands"])


def test_machines_of_ones_own_know_their_pool():
    config = read("on_prem.yaml")
    choose = config["worker_start_ray_commands"][-1].partition("esac;")[0] + 'esac; echo "$pool"'
    pools = {}
    for address in (*config["provider"]["worker_ips"], "192.168.1.110"):
        script = f"hostname() {{ echo '172.17.0.1 {address} '; }}; {choose}"
        pools[address] = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert pools == {
        "192.168.1.11": "teachers\n",
        "192.168.1.12": "teachers\n",
        "192.168.1.21": "students\n",
        "192.168.1.22": "students\n",
        "192.168.1.110": "students\n",  # begins like a teachers' one
    }


# A subset of Google's compute API, v1, revision 20261106: what gcp.yaml uses of Instance, and of what it refers to.
INSTANCE = {
    "type": "object",
    "required": ["machineType", "disks"],
    "additionalProperties": False,
    "properties": {
        "machineType": {"type": "string"},
        "disks": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "boot": {"type": "boolean"},
                    "autoDelete": {"type": "boolean"},
                    "type": {"enum": ["PERSISTENT", "SCRATCH"]},
                    "initializeParams": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "diskSizeGb": {"type": "integer", "minimum": 10},
                            "sourceImage": {
                                "type": "string",
                                "pattern": "^projects/[a-z-]+/global/images/family/[a-z0-9-]+$",
                            },
                        },
                    },
                },
            },
        },
        "scheduling": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "provisioningModel": {"enum": ["FLEX_START", "RESERVATION_BOUND", "SPOT", "STANDARD"]},
                "instanceTerminationAction": {"enum": ["DELETE", "STOP"]},
                "onHostMaintenance": {"enum": ["MIGRATE", "TERMINATE"]},
                "automaticRestart": {"type": "boolean"},
            },
        },
    },
}
