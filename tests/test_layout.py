import itertools
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.validation import parse_and_validate_excludes
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


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


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()
