import os
import subprocess
import sys

import pytest

from rankstill.cluster import share_of
from rankstill.config import Resources
from rankstill.errors import ConfigError

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.mark.parametrize("field", ["workers", "actors"])
def test_more_processes_than_the_cluster_has_room_for_are_refused(field):
    with pytest.raises(ConfigError, match=rf"resources\.{field} is 999 but the cluster has \d+ CPUs"):
        share_of(Resources.model_validate({field: 999}))


def test_all_threads_are_shared_out():
    share = share_of(Resources(device="cpu"))
    assert share.workers == 1
    assert share.actors[0] * share.actor_cpus == share.worker_cpus


WAITS = """
import time
from rankstill.cli import run_command
from rankstill.cluster import connect, leave

def main():
    STEPS
    print("connected", flush=True)
    time.sleep(100)

run_command(main)
"""


@pytest.mark.parametrize("steps", ["connect()", "connect(); leave()"])
def test_a_command_that_is_terminated_says_so_in_a_line(steps):
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", WAITS.replace("STEPS", steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as process:
        assert process.stdout.readline() == "connected\n"
        process.terminate()
        said = process.stderr.read()
    assert (process.returncode, said) == (
        130,
        "interrupted; what was finished stands, and the same command goes on from there\n",
    )
