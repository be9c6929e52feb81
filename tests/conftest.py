"""One Ray cluster for all tests that need one, in one of the processes that tests run in."""

import pytest
import ray

from rankstill.cluster import connect


@pytest.fixture(scope="session")
def cluster():
    connect()
    yield
    ray.shutdown()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the cluster stay together, and otherwise those of a file, where pytest-xdist has several processes."""
    for item in items:
        group = "cluster" if "cluster" in item.fixturenames else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
