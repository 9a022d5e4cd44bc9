"""The manifests: Kubernetes' own schemas, a stated subset of KubeRay's, and what Ray's autoscaler reads in them.

KubeRay's custom resources have no schema that a package ships. SUBSET below lists the fields of its `ray.io/v1` types,
release 1.6, that the files use or are likely to; it is narrower than the real one, so what passes here may still be
refused there for a reason that it does not know. Pods in them are held against Kubernetes' schema.
"""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray import __version__ as ray_version
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as read_by_ray
from test_ray_up import check_places

FOLDER = Path(__file__).parents[2] / "cluster" / "kubernetes"
FILES = ("namespace.yaml", "mlflow.yaml", "raycluster.yaml", "rayjob.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def cluster_of(name: str) -> dict[str, Any]:
    """The RayCluster's spec, whole or within the RayJob."""
    (document,) = documents(name)
    return document["spec"] if name == "raycluster.yaml" else document["spec"]["rayClusterSpec"]


def ray_groups(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pods() -> dict[str, dict[str, Any]]:
    """Every pod template of the folder, by file and name."""
    found = {}
    for name in FILES:
        for document in documents(name):
            if document["kind"] in ("Deployment", "StatefulSet"):
                found[f"{name}: {document['metadata']['name']}"] = document["spec"]["template"]
            elif document["kind"] in ("RayCluster", "RayJob"):
                for group, of in ray_groups(cluster_of(name)).items():
                    found[f"{name}: {group}"] = of["template"]
                if document["kind"] == "RayJob":
                    found[f"{name}: submitter"] = document["spec"]["submitterPodTemplate"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_takes_it(name):
    for document in documents(name):
        if document["kind"] in SUBSET:
            jsonschema.validate(document["spec"], SUBSET[document["kind"]])
            assert document["apiVersion"] == "ray.io/v1"
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "raykd"


@pytest.mark.parametrize("name", pods())
def test_pods(name):
    template = pods()[name]
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "PodTemplate", "template": template}, "1.37", strict=True)
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert name.endswith("head") or pod["automountServiceAccountToken"] is False  # the autoscaler needs it
    for container in pod["containers"]:
        assert container["securityContext"] == CONFINED
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"]
        if name.startswith("mlflow"):
            assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}
        declared = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}  # the stateful sets' own claim
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= declared


def test_what_is_wrong_is_refused():
    (cluster,) = documents("raycluster.yaml")
    wrong = copy.deepcopy(cluster["spec"])
    wrong["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="'minReplica' was unexpected"):
        jsonschema.validate(wrong, SUBSET["RayCluster"])
    wrong = copy.deepcopy(pods()["rayjob.yaml: students"])
    wrong["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "template": wrong}, "1.37", strict=True
        )


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_ray_grows_it_from_nothing(name):
    """As Ray's autoscaler in the head's pod reads it, by the very function."""
    spec = cluster_of(name)
    config = read_by_ray({"metadata": {"name": "raykd", "namespace": "raykd"}, "spec": spec})
    nodes = config["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert config["idle_timeout_minutes"] == 10
    for group in ("teachers", "students"):
        assert (nodes[group]["min_workers"], nodes[group]["max_workers"]) == (0, 4)
        assert nodes[group]["labels"] == {"pool": group}
        assert nodes[group]["resources"]["GPU"] == 1
    check_places("kubernetes/raycluster.yaml", nodes)
    assert spec["rayVersion"] == ray_version
    assert spec["authOptions"] == {"mode": "token", "secretName": "raykd-ray"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["securityContext"] == CONFINED


def test_both_clusters_are_the_same():
    stays, one_job = (copy.deepcopy(cluster_of(name)) for name in ("raycluster.yaml", "rayjob.yaml"))
    head = one_job["headGroupSpec"]
    # The job server is for a port-forward, which comes from within the pod; or for the submitter, another pod.
    assert stays["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert head["rayStartParams"].pop("dashboard-host") == "0.0.0.0"
    assert head["template"]["spec"]["containers"][0]["volumeMounts"].pop() == {"name": "job", "mountPath": "/job"}
    assert head["template"]["spec"]["volumes"].pop() == {"name": "job", "configMap": {"name": "raykd-job"}}
    assert stays == one_job
    assert documents("rayjob.yaml")[0]["spec"]["entrypoint"].split()[:4] == ["python", "-m", "raykd", "sweep"]


def test_only_the_head_knows_mlflow_and_all_share_the_output():
    for group, of in ray_groups(cluster_of("rayjob.yaml")).items():
        (container,) = of["template"]["spec"]["containers"]
        names = {variable["name"] for variable in container["env"]}
        assert ("MLFLOW_TRACKING_PASSWORD" in names) == (group == "head")
        assert {"name": "output", "mountPath": "/shared"} in container["volumeMounts"]
        assert {"name": "output", "persistentVolumeClaim": {"claimName": "output"}} in of["template"]["spec"]["volumes"]
    (claim,) = [d for d in documents("namespace.yaml") if d["kind"] == "PersistentVolumeClaim"]
    assert (claim["metadata"]["name"], claim["spec"]["accessModes"]) == ("output", ["ReadWriteMany"])


def test_headers_make_each_secret_that_is_asked_for():
    headers = " ".join(
        line.strip("# \\") for name in FILES for line in (FOLDER / name).read_text().splitlines() if line[:1] == "#"
    )
    made = {
        secret: words
        for secret, words in re.findall(r"create secret generic (\S+) (.*?)(?=kubectl|KubeRay|The)", headers)
    }
    asked = [
        variable["valueFrom"]["secretKeyRef"]
        for template in pods().values()
        for container in template["spec"]["containers"]
        for variable in container.get("env", [])
        if "valueFrom" in variable
    ]
    assert {ref["name"] for ref in asked if not ref.get("optional")} | {"raykd-ray"} == made.keys()
    assert "auth_token=" in made["raykd-ray"]
    for ref in asked:
        assert ref.get("optional") or re.search(rf"\b{ref['key']}\b", made[ref["name"]]), ref
    assert "create configmap raykd-job --from-file=job.yaml=" in headers


def test_nobody_is_let_in_by_default():
    policies = {
        d["metadata"]["name"]: d["spec"]
        for name in ("namespace.yaml", "mlflow.yaml")
        for d in documents(name)
        if d["kind"] == "NetworkPolicy"
    }
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    ray_nodes = {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}
    assert policies["ray"]["podSelector"] == ray_nodes
    nodes, job_server = policies["ray"]["ingress"]
    assert nodes == {"from": [{"podSelector": ray_nodes}]}
    assert job_server["ports"] == [{"protocol": "TCP", "port": 8265}]
    submitter = documents("rayjob.yaml")[0]["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert job_server["from"][0] == {"podSelector": {"matchLabels": submitter}}
    assert policies["mlflow"]["ingress"][0]["from"] == [{"podSelector": ray_nodes}]
    assert policies["mlflow-stores"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]


def test_services_lead_to_their_pods():
    everything = documents("mlflow.yaml")
    workloads = [d for d in everything if d["kind"] in ("Deployment", "StatefulSet")]
    for service in (d for d in everything if d["kind"] == "Service"):
        selector = service["spec"]["selector"]
        (workload,) = [w for w in workloads if w["spec"]["template"]["metadata"]["labels"] == selector]
        assert workload["spec"]["selector"]["matchLabels"] == selector
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert all(named[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
        # Else Kubernetes puts MLFLOW_PORT=tcp://... and the like into the environment.
        assert workload["spec"]["template"]["spec"]["enableServiceLinks"] is False


CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
NUMBER, TEXTS = {"type": "integer", "minimum": 0}, {"type": "object", "additionalProperties": {"type": "string"}}
POD = {"type": "object", "required": ["spec"]}


def exactly(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    fields = {"properties": required | optional, "required": list(required)}
    return {"type": "object", "additionalProperties": False, **fields}


OF_ALL_GROUPS = {"rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS}
RAY_CLUSTER = exactly(
    {"headGroupSpec": exactly({"template": POD}, serviceType={"enum": ["ClusterIP", "NodePort"]}, **OF_ALL_GROUPS)},
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    suspend={"type": "boolean"},
    authOptions=exactly({"mode": {"enum": ["disabled", "token"]}}, secretName={"type": "string"}),
    autoscalerOptions=exactly(
        {},
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=NUMBER,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        securityContext={"type": "object"},
        resources={"type": "object"},
        env={"type": "array"},
    ),
    workerGroupSpecs={
        "type": "array",
        "items": exactly(
            {"groupName": {"type": "string"}, "minReplicas": NUMBER, "maxReplicas": NUMBER, "template": POD},
            replicas=NUMBER,
            numOfHosts=NUMBER,
            idleTimeoutSeconds=NUMBER,
            **OF_ALL_GROUPS,
        ),
    },
)
RAY_JOB = exactly(
    {"entrypoint": {"type": "string"}, "rayClusterSpec": RAY_CLUSTER},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=POD,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=NUMBER,
    backoffLimit=NUMBER,
    activeDeadlineSeconds=NUMBER,
    suspend={"type": "boolean"},
    runtimeEnvYAML={"type": "string"},
)
SUBSET = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}
