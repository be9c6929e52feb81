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
