import importlib
import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray._private.runtime_env.validation import parse_and_validate_excludes
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from rankstill.configfile import load_config
from serve.app import BuildArguments
from serve.environment import SERVE_SETTINGS

ROOT = Path(__file__).parent.parent
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}


def _kuberay(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


GROUP = {"rayStartParams": TEXTS, "template": {"type": "object"}}
WORKERS = {**GROUP, "groupName": {"type": "string"}, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
CLUSTER = _kuberay(
    {
        "rayVersion": {"type": "string"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "headGroupSpec": _kuberay(GROUP, "rayStartParams", "template"),
        "workerGroupSpecs": {
            "type": "array",
            "items": _kuberay(WORKERS, "groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
        },
    },
    "headGroupSpec",
)
KUBERAY = {
    "RayService": _kuberay({"serveConfigV2": {"type": "string"}, "rayClusterConfig": CLUSTER}),
    "RayJob": _kuberay(
        {
            "entrypoint": {"type": "string"},
            "runtimeEnvYAML": {"type": "string"},
            "shutdownAfterJobFinishes": {"type": "boolean"},
            "ttlSecondsAfterFinished": COUNT,
            "backoffLimit": COUNT,
            "rayClusterSpec": CLUSTER,
        }
    ),
}
"""What of KubeRay's `ray.io/v1` resources is used here, by the types of ray-operator/apis/ray/v1."""


def test_platform_folder_does_not_shadow_the_standard_library():
    assert list((ROOT / "platform").glob("*.py")) == []
    import platform

    assert platform.python_version()


@pytest.mark.parametrize("package", ["jobs", "serve", "tune"])
def test_entry_folders_are_packages(package):
    assert (ROOT / package / "__init__.py").is_file()


def test_cluster_file_passes_rays_own_validation():
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert "GPU" not in types[config["head_node_type"]]["resources"]
    gpu = [node for node in types.values() if node["resources"].get("GPU")]
    cpu = [
        node for name, node in types.items() if not node["resources"].get("GPU") and name != config["head_node_type"]
    ]
    assert [node["max_workers"] > node["min_workers"] for node in gpu + cpu] == [True, True]


def test_runtime_env_puts_the_library_on_the_path_and_leaves_outputs_behind():
    env = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert env["env_vars"]["PYTHONPATH"] == "platform"
    assert {".venv", ".rankstill"} <= set(parse_and_validate_excludes(env["excludes"]))


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {_name(entry) for entry in wanted} <= pinned


def test_nodes_of_a_cluster_get_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = " ".join(yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"])
    installed = {_name(word.strip("'")) for word in commands.split() if re.match(r"'?[a-z]", word)}
    assert {_name(entry) for entry in project["dependencies"]} <= installed


@pytest.mark.parametrize("path", ["serve/config.yaml", "serve/k8s/rayservice.yaml"])
def test_what_serve_deploys_passes_its_own_validation(path):
    tree = yaml.safe_load((ROOT / path).read_text())
    config = ServeDeploySchema.model_validate(yaml.safe_load(tree["spec"]["serveConfigV2"]) if "spec" in tree else tree)
    (application,) = config.applications
    module, _, name = str(application.import_path).partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    BuildArguments.model_validate(application.args)


def test_serve_on_kubernetes_has_the_settings_that_a_cluster_of_ours_gets():
    spec = yaml.safe_load((ROOT / "serve" / "k8s" / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        given = {one["name"]: one["value"] for one in group["template"]["spec"]["containers"][0]["env"]}
        assert given.items() >= SERVE_SETTINGS.items()


def test_the_job_on_kubernetes_is_one_of_ours():
    spec = yaml.safe_load((ROOT / "jobs" / "k8s" / "rayjob.yaml").read_text())["spec"]
    words = spec["entrypoint"].split()
    assert words[:2] == ["python", "-m"]
    load_config(ROOT / words[words.index("--config") + 1], [word for word in words if "=" in word])
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["PYTHONPATH"] == "platform"
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert all(group["template"]["spec"]["containers"][0]["workingDir"] for group in groups)


@pytest.mark.parametrize("path", ["serve/k8s/rayservice.yaml", "jobs/k8s/rayjob.yaml"])
def test_kubernetes_manifests_pass_published_schemas(path):
    tree = yaml.safe_load((ROOT / path).read_text())
    assert tree["apiVersion"] == "ray.io/v1"
    jsonschema.validate(tree["spec"], KUBERAY[tree["kind"]])
    cluster = tree["spec"].get("rayClusterConfig") or tree["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()
