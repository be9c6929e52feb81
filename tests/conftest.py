"""One Ray cluster for all tests that need one."""

import pytest
import ray

from rankstill.cluster import connect
from serve.environment import serve_environment


@pytest.fixture(scope="session")
def cluster():
    """As `serve.app` starts it."""
    with serve_environment() as environment:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            connect()
        yield
        ray.shutdown()
