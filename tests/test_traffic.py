from collections import Counter

import pytest
from pydantic import ValidationError

from rankstill.served import Served, Version
from serve import traffic
from serve.traffic import Traffic


def served(*weights: float, shadows: tuple[float, ...] = ()) -> Traffic:
    shadow = dict(enumerate(shadows))
    versions = tuple(
        Version(version=f"shop/{n}", fields=("title",), weight=weight, shadow=shadow.get(n, 0.0))
        for n, weight in enumerate(weights)
    )
    return Traffic(Served(name="shop", versions=versions))


def counted(traffic: Traffic, keys: list[str]) -> Counter[str]:
    return Counter(traffic.choose(key).version for key in keys)


KEYS = [f"caller {number}" for number in range(20_000)]


@pytest.mark.parametrize("keys", [KEYS, [""] * 20_000], ids=["with keys", "without"])
def test_shares_are_the_weights(keys):
    found = counted(served(90, 10), keys)
    assert found["shop/0"] / len(keys) == pytest.approx(0.9, abs=0.01)
    assert sum(found.values()) == len(keys)


def test_three_versions_get_their_shares():
    found = counted(served(5, 3, 2), KEYS)
    assert [found[f"shop/{n}"] / len(KEYS) for n in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.01)


def test_a_caller_stays_with_its_version():
    first, again = served(90, 10), served(90, 10)
    assert [first.choose(key).version for key in KEYS] == [again.choose(key).version for key in KEYS]


def test_a_growing_share_moves_nobody_back():
    small, large = served(90, 10), served(50, 50)
    before = {key for key in KEYS if small.choose(key).version == "shop/1"}
    after = {key for key in KEYS if large.choose(key).version == "shop/1"}
    assert before < after


def test_no_weight_is_no_traffic_but_the_name_still_finds_it():
    both = served(1, 0)
    assert counted(both, KEYS[:500]) == {"shop/0": 500}
    assert both.served.find("shop/1").version == "shop/1"
    assert both.served.find("shop/7") is None


def test_shadows_get_copies_of_the_others_requests_only():
    some = served(1, 0, shadows=(1.0, 0.25))
    copies = [one.version for _ in range(4000) for one in some.shadows(some.champion)]
    assert set(copies) == {"shop/1"}
    assert len(copies) / 4000 == pytest.approx(0.25, abs=0.03)


def test_a_version_that_fails_is_taken_out_and_tried_again(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(traffic.time, "monotonic", lambda: now[0])
    both = served(50, 50)
    sick = both.served.find("shop/1")
    for number in range(40):
        both.tell(sick, well=number % 10 != 0)  # a tenth fails: that may be
        both.tell(both.champion, well=True)
    assert not both.taken_out(sick)
    for _ in range(10):
        both.tell(sick, well=False)
    assert both.taken_out(sick)
    assert counted(both, KEYS[:500]) == {"shop/0": 500}
    changed = served(10, 90)
    changed.keep(both)
    assert changed.taken_out(sick), "a change of weights forgets nothing"
    now[0] += traffic.OUT_SECONDS + 1
    assert counted(both, KEYS[:500])["shop/1"] > 200


def test_failures_of_long_ago_do_not_count(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(traffic.time, "monotonic", lambda: now[0])
    both = served(50, 50)
    for _ in range(19):
        both.tell(both.champion, well=False)
    now[0] += traffic.WINDOW_SECONDS + 1
    for _ in range(30):
        both.tell(both.champion, well=True)
    assert not both.taken_out(both.champion)


def test_the_champion_answers_where_all_are_out():
    both = served(50, 50)
    for one in both.served.versions:
        for _ in range(30):
            both.tell(one, well=False)
    assert both.choose("x") is both.champion


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ([], "at least 1"),
        ([{"version": "shop/1", "fields": ["title"], "weight": 0}], "weight above 0"),
        ([{"version": "shop/1", "fields": ["title"]}] * 2, "named twice"),
        ([{"version": "shop/1", "fields": ["title"], "weight": -1}], "weight"),
    ],
)
def test_what_can_not_be_served_is_refused(versions, says):
    with pytest.raises(ValidationError, match=says):
        Served.model_validate({"name": "shop", "versions": versions})
