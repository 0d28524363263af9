"""Clusters for `ray up` and Kubernetes: valid by Ray's and Kubernetes' schemas, and closed to other hosts."""

import json
import re
import shlex
import subprocess
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
INFRA = ROOT / "infra"
CLUSTERS = [INFRA / "aws.yaml", INFRA / "gcp.yaml"]
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def locked(name: str) -> str:
    return re.search(rf"^{name}==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


# --- `ray up` --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_the_cluster_is_valid_by_rays_schema(path):
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    config = load(path)
    jsonschema.validate(config, schema)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head" and config["idle_timeout_minutes"] > 0
    assert head.get("max_workers", 0) == 0 and gpu.get("min_workers", 0) == 0
    assert gpu["max_workers"] == config["max_workers"]
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate(config | {"idle_timeout": 1}, schema)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_clusters_listen_on_loopback_and_need_a_token(path):
    config = load(path)
    for kind in ("head", "worker"):
        start = config[f"{kind}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start and "--dashboard-host=0.0.0.0" not in start
    head = config["head_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in head[-1]
    assert "--host 127.0.0.1" in head[1]  # MLflow
    setup = config["setup_commands"]
    assert setup[0] == "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token"
    installs = [command for commands in setup for command in commands.split("&&") if "pip install" in command]
    assert len(installs) == 2 and all("--require-hashes" in command for command in installs)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert all((ROOT / p).exists() for p in config["file_mounts"].values() if not p.startswith("~"))
    for commands in (setup, head, config["worker_start_ray_commands"]):
        for command in commands:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def test_workers_are_spot_and_carry_no_cloud_identity():
    aws, gcp = (load(path)["available_node_types"]["gpu"]["node_config"] for path in CLUSTERS)
    assert aws["InstanceMarketOptions"] == {"MarketType": "spot"} and "IamInstanceProfile" not in aws
    assert gcp["scheduling"]["provisioningModel"] == "SPOT" and "serviceAccounts" not in gcp
    head = load(CLUSTERS[0])["available_node_types"]["head"]["node_config"]
    assert all(node["MetadataOptions"]["HttpTokens"] == "required" for node in (aws, head))


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def pod_templates() -> dict[str, dict]:
    cluster, job = load(INFRA / "kuberay/cluster.yaml")["spec"], load(INFRA / "kuberay/job.yaml")["spec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], "submitter": job["submitterPodTemplate"]} | workers


@pytest.mark.parametrize("path", [p for p in MANIFESTS if not load(p)["apiVersion"].startswith("ray.io")], ids=str)
def test_the_manifest_is_valid_by_kubernetes_schema(path):
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(load(path), "1.30", strict=True)


@pytest.mark.parametrize("name", pod_templates())
def test_pods_are_valid_by_kubernetes_schema(name):
    validate = pytest.importorskip("kubernetes_validate")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} | pod_templates()[name]
    validate.validate(pod, "1.30", strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate(pod | {"spec": pod["spec"] | {"container": []}}, "1.30", strict=True)


@pytest.mark.parametrize("name", pod_templates())
def test_pods_run_without_rights(name):
    spec = pod_templates()[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert set(container["resources"]) == {"requests", "limits"}
    assert name == "head" or spec["automountServiceAccountToken"] is False  # the head's autoscaler starts pods


RAY_CLUSTER = {  # ray.io/v1, the fields that are used here: (type, required)
    "rayVersion": str, "authOptions": dict, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict,
    "headGroupSpec": dict, "workerGroupSpecs": list,
}  # fmt: skip
HEAD_GROUP = {"serviceType": str, "rayStartParams": dict, "template": dict}
WORKER_GROUP = {
    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict, "template": dict,
}  # fmt: skip
RAY_JOB = {"clusterSelector": dict, "entrypoint": str, "submitterPodTemplate": dict}


def assert_fields(given: dict, known: dict[str, type]) -> None:
    assert {name: type(value) for name, value in given.items()} == known


def test_the_ray_cluster_has_the_fields_of_its_resource():
    manifest = load(INFRA / "kuberay/cluster.yaml")
    spec = manifest["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert_fields(spec, RAY_CLUSTER), assert_fields(spec["headGroupSpec"], HEAD_GROUP)
    (gpu,) = spec["workerGroupSpecs"]
    assert_fields(gpu, WORKER_GROUP)
    for group in (spec["headGroupSpec"], gpu):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert spec["authOptions"] == {"mode": "token"} and spec["rayVersion"] == locked("ray")
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and spec["enableInTreeAutoscaling"]
    assert gpu["minReplicas"] == 0 < gpu["maxReplicas"]
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "cloud.google.com/gke-spot" in {toleration["key"] for toleration in gpu["template"]["spec"]["tolerations"]}
    claim = load(INFRA / "kuberay/storage.yaml")
    for template in (spec["headGroupSpec"]["template"], gpu["template"]):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounts = {mount["name"]: mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {"shared": "/shared", "shm": "/dev/shm"} and set(mounts) == set(volumes)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "egic-mlflow"}}]


def test_the_ray_job_fits_cluster_and_image():
    from jobs.config.presets import PRESETS

    job, cluster = load(INFRA / "kuberay/job.yaml"), load(INFRA / "kuberay/cluster.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert_fields(job["spec"], RAY_JOB)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    images = {template["spec"]["containers"][0]["image"] for template in pod_templates().values()}
    assert len(images) == 1
    python, script, preset, *options = shlex.split(job["spec"]["entrypoint"])
    assert python == "python" and (ROOT / Path(script).relative_to("/opt/egic")).is_file() and preset in PRESETS
    config = PRESETS[preset]()
    for option in (o for o in options if o.startswith("--compute.")):
        assert hasattr(config.compute, option.removeprefix("--compute.").replace("-", "_"))


def test_the_network_policy_selects_the_clusters_pods():
    policy = load(INFRA / "kuberay/network.yaml")["spec"]
    name = load(INFRA / "kuberay/cluster.yaml")["metadata"]["name"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": name} and policy["policyTypes"] == ["Ingress"]
