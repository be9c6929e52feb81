"""One Ray cluster for all tests that need one."""

import pytest
import ray

from rankstill.cluster import connect


@pytest.fixture(scope="session")
def cluster():
    connect()
    yield
    ray.shutdown()
