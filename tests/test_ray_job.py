"""`ray job submit` against a real cluster of its own, with token authentication."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from rankstill.artifacts import load_artifact

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def job_cluster():
    """Environment of a client of a fresh cluster; its home holds the token, its path is short for Ray's sockets."""
    home = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))
    port, dashboard, client, agent = free_ports(4)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env = {**clean, "HOME": str(home), "RAY_AUTH_MODE": "token"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    head = [RAY, "start", "--head", "--num-cpus=2", f"--temp-dir={home / 't'}", f"--port={port}"]
    ports = [
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
    ]
    process = subprocess.Popen(
        [*head, *ports, "--block"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    env["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    wait_until_jobs_are_taken(env)
    yield env
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:  # Ray itself takes half a minute
        one.kill()
    process.wait(60)
    shutil.rmtree(home, ignore_errors=True)


def submit(env: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--"]
    return subprocess.run(
        [*command, *entrypoint], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def wait_until_jobs_are_taken(env: dict[str, str]) -> None:
    """A young cluster answers "No available agent" for a while; an empty job tells when it is over."""
    end = time.monotonic() + 120
    while (result := submit(env, "true")).returncode != 0:
        assert time.monotonic() < end, result.stdout + result.stderr


def test_the_pipeline_runs_as_a_ray_job(job_cluster, tmp_path):
    where = "import rankstill; print('library at', rankstill.__file__)"
    place = submit(job_cluster, sys.executable, "-c", where)
    # The uploaded copy is used and not one that happens to be installed.
    assert "working_dir_files" in place.stdout, place.stdout + place.stderr
    pipeline = [sys.executable, "-m", "jobs.pipeline", "--config", "jobs/configs/tiny.yaml"]
    quick = ["train.epochs=1", "teacher.train.epochs=1", f"storage.root={tmp_path}"]
    result = submit(job_cluster, *pipeline, *quick)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "tiny/1 (" in result.stdout
    assert load_artifact(next((tmp_path / "artifacts").iterdir())).manifest["made_from"]["name"] == "tiny"


def test_a_client_without_the_token_is_turned_away(job_cluster, tmp_path):
    stranger = {**job_cluster, "HOME": str(tmp_path)}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=stranger, check=True, capture_output=True)
    result = submit(stranger, "true")
    assert result.returncode != 0
    assert "token authentication" in result.stdout + result.stderr
