"""A simulated shop whose demand drifts."""

from datetime import UTC, datetime
from random import Random

import polars as pl
import pytest

from rankstill.simulation import SLANG, SimulatedShop, Visit, clicks, logged


@pytest.fixture(scope="module")
def shop():
    return SimulatedShop(items=300, queries=90, candidates=6)


def visits(shop: SimulatedShop, drifted: float) -> list[Visit]:
    return [shop.visit(Random(number), drifted) for number in range(300)]


def test_drift_brings_words_and_items_that_no_judgement_knows(shop):
    known = set(shop.judgements()["item_id"])
    queries = set(shop.judgements()["query"])
    before, after = visits(shop, 0.0), visits(shop, 1.0)
    assert {visit.query for visit in before} <= queries
    assert {visit.query for visit in after}.isdisjoint(queries)
    assert {one["id"] for visit in before for one in visit.items} <= known
    assert any(one["id"] not in known for visit in after for one in visit.items)
    new = [visit for visit in after if any(word in visit.query for word in SLANG)]
    assert 0 < len(new) < len(after)


def test_quiet_queries_are_judged_and_held_out_and_change_nothing_else(shop):
    quiet = SimulatedShop(items=300, queries=90, candidates=6, quiet=20)
    held = quiet.judgements().filter(pl.col("split").is_not_null())
    asked = {visit.query for drifted in (0.0, 1.0) for visit in visits(quiet, drifted)}
    assert set(held["split"]) == {"valid", "test"}
    assert 5 < held["query"].n_unique() <= 20
    assert set(held["query"]).isdisjoint(asked)
    assert quiet.judgements().filter(pl.col("split").is_null()).equals(shop.judgements())
    assert visits(quiet, 0.5) == visits(shop, 0.5)


def test_a_search_finds_little_that_fits_a_word_it_does_not_know(shop):
    def fitting(found: list[Visit]) -> float:
        grades = [grade for visit in found for grade in visit.grades]
        return sum(grade > 0 for grade in grades) / len(grades)

    after = visits(shop, 1.0)
    unknown = [visit for visit in after if any(word in visit.query for word in SLANG)]
    assert fitting(unknown) < 0.7 * fitting([visit for visit in after if visit not in unknown])


def test_the_same_shoppers_come_again(shop):
    assert visits(shop, 0.5) == visits(SimulatedShop(items=300, queries=90, candidates=6), 0.5)


def test_better_items_and_earlier_positions_are_clicked_more():
    rng, counts = Random(0), [0, 0, 0]
    for _ in range(4000):
        for place in clicks(rng, [3, 3, 0]):
            counts[place] += 1
    assert counts[0] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counts[1] / 4000 == pytest.approx(0.25, abs=0.03)
    assert counts[2] / 4000 == pytest.approx(0.01 / 3, abs=0.005)


def test_logs_have_two_neighbours_in_random_order():
    items = [{"id": str(n), "title": f"item {n}"} for n in range(4)]
    visit, order, now = Visit("drill", items, [0, 3, 1, 2]), [1, 3, 2, 0], datetime.now(UTC)
    rng, changed = Random(0), 0
    for number in range(400):
        impression, events = logged(rng, visit, order, "shop/1", f"r{number}", now)
        shown = [int(one["item_id"]) for one in impression["items"]]
        upper = impression["swap"]
        changed += shown != order
        expected = [*order]
        if shown != order:
            expected[upper], expected[upper + 1] = expected[upper + 1], expected[upper]
        assert shown == expected
        assert [one["position"] for one in impression["items"]] == [0, 1, 2, 3]
        assert {event["request_id"] for event in events} <= {f"r{number}"}
    assert changed / 400 == pytest.approx(0.5, abs=0.1)
