"""One Ray cluster for all tests that need one."""

import pytest
import ray

from rankstill.cluster import connect
from serve.environment import serve_environment


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """As `serve.app` starts it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in serve_environment(tmp_path_factory.mktemp("serve")).items():
            patch.setenv(name, value)
        connect()
    yield
    ray.shutdown()
