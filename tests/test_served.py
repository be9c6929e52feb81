import pytest

from rankstill.errors import ConfigError
from rankstill.served import Served, Version
from rankstill.serving import APP, INGRESS, app_of, with_served, with_traffic, with_version


def version(number: int, **given) -> Version:
    return Version(version=f"shop/{number}", app=f"shop-{number}", fields=("title",), **given)


def weights(served: Served) -> dict[str, float]:
    return {one.version: round(one.weight, 3) for one in served.versions}


@pytest.fixture
def two() -> Served:
    return Served(name="shop", versions=(version(1),)).joined(version(2, weight=0.0))


def test_who_joins_gets_nothing_yet_and_is_there_once(two):
    assert weights(two.joined(version(2, weight=0.0))) == {"shop/1": 1.0, "shop/2": 0.0}
    assert two.idle(1e12) == [], "never having had traffic is no loss of it"


def test_a_share_is_taken_from_the_others_as_they_had_it(two):
    some = two.shared("shop/2", 0.1)
    assert weights(some) == {"shop/1": 0.9, "shop/2": 0.1}
    three = some.joined(version(3, weight=0.0)).shared("shop/3", 0.5)
    assert weights(three) == {"shop/1": 0.45, "shop/2": 0.05, "shop/3": 0.5}
    assert weights(three.shared("shop/3", 0.0)) == {"shop/1": 0.9, "shop/2": 0.1, "shop/3": 0.0}


def test_what_is_there_to_compare_with_gets_no_traffic_and_stays(two):
    beside = two.joined(Version(version="teacher", app="teacher", fields=("title",), weight=0.0, reference=True))
    for change in (
        lambda: beside.promoted("teacher", now=0.0),
        lambda: beside.shared("teacher", 0.1),
        lambda: beside.shadowed("teacher", 0.1),
    ):
        with pytest.raises(ConfigError, match="'teacher' is served to compare with, and gets no traffic"):
            change()
    after = beside.promoted("shop/2", now=1000.0).shared("shop/1", 0.5)
    assert weights(after)["teacher"] == 0.0
    assert [one.version for one in after.idle(1e12)] == []
    assert weights(after.without("teacher")) == {"shop/2": 0.5, "shop/1": 0.5}


def test_a_promotion_leaves_the_one_before_warm_and_can_be_turned_back(two):
    after = two.shared("shop/2", 0.25).promoted("shop/2", now=1000.0)
    assert weights(after) == {"shop/2": 1.0, "shop/1": 0.0}
    assert after.find("shop@champion") is after.champion
    assert [one.version for one in after.idle(1001.0)] == ["shop/1"]
    assert after.idle(999.0) == []
    back = after.promoted("shop/1", now=2000.0)
    assert weights(back) == {"shop/1": 1.0, "shop/2": 0.0}
    assert back.versions[0].idle_since == 0
    assert (two.find("shop@champion").version, back.find("shop@champion").version) == ("shop/1", "shop/1")


def test_who_was_idle_stays_idle_since_then(two):
    after = two.promoted("shop/2", 1000.0).joined(version(3, weight=0.0)).promoted("shop/3", 2000.0)
    assert {one.version: one.idle_since for one in after.versions} == {"shop/3": 0, "shop/1": 1000.0, "shop/2": 2000.0}


def test_shadows_and_leaving(two):
    assert two.shadowed("shop/2", 0.5).find("shop/2").shadow == 0.5
    assert weights(two.without("shop/2")) == {"shop/1": 1.0}
    with pytest.raises(ConfigError, match="can't be without"):
        two.without("shop/1")
    with pytest.raises(ConfigError, match="'shop/9' is not served; the endpoint has 'shop/1', 'shop/2'"):
        two.shared("shop/9", 0.1)
    with pytest.raises(ConfigError, match="promote"):
        two.shared("shop/2", 1.0)


def test_an_application_comes_for_a_version_and_goes_with_it(two):
    ingress = {"name": APP, "route_prefix": "/", "args": {"model": "shop/1", "replicas": 2}, "deployments": []}
    config = {"applications": [ingress, {"name": "shop-1", "args": {"model": "shop/1", "replicas": 2}}]}
    more = with_version(config, version(2), "shop/2")
    added = more["applications"][2]
    assert (added["name"], added["route_prefix"]) == ("shop-2", None), "a version has no route of its own"
    assert added["import_path"] == "serve.app:version"
    assert added["args"] == {"model": "shop/2", "replicas": 2}
    assert with_version(more, version(2), "shop/2") == more
    told = with_traffic(more, two)["applications"][0]["deployments"]
    assert Served.model_validate(told[0]["user_config"]) == two
    assert told[0]["name"] == INGRESS
    less = with_served(more, two.without("shop/2"))
    assert [one["name"] for one in less["applications"]] == [APP, "shop-1"]
    assert config["applications"][0]["deployments"] == [], "what was given is left as it was"


def test_names_of_applications():
    assert app_of("shop/3") == "shop-3"
