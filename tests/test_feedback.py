import numpy as np
import polars as pl
import pytest

from rankstill.errors import DataError
from rankstill.feedback import (
    Examination,
    by_model,
    by_swaps,
    cascade,
    click_targets,
    examination,
    relevance,
    weighted_mean,
)
from tests.benchmarks.clicks import shoppers


def truth(attraction: np.ndarray, found: pl.DataFrame) -> np.ndarray:
    return attraction[found["query"].cast(int).to_numpy(), found["item_id"].cast(int).to_numpy()]


LOOKED = 1 / np.arange(1, 6) ** 0.6


def test_neighbours_in_random_order_tell_who_looks_where():
    shown, _ = shoppers(400_000, LOOKED, swaps=1.0)
    found = by_swaps(shown, 5)
    assert np.abs(found.value_K / LOOKED - 1).max() < 0.05
    assert ((found.low_K <= LOOKED) & (found.high_K >= LOOKED)).all()
    assert (found.method, found.requests) == ("swaps", 400_000)


def test_what_is_not_swapped_does_not_count():
    shown, _ = shoppers(100_000, LOOKED, swaps=0.5)
    only = shown.filter(pl.col("swap").is_not_null())
    assert by_swaps(shown, 5).value_K.tolist() == by_swaps(only, 5).value_K.tolist()


def test_a_click_model_tells_who_looks_where():
    looked = 1 / np.arange(1, 9) ** 0.8
    shown, _ = shoppers(100_000, looked)
    found = by_model(shown, 8)
    assert np.abs(found.value_K / looked - 1).max() < 0.05
    assert (found.high_K - found.low_K)[1:].min() > 0
    naive = shown.group_by("position").agg(pl.col("clicked").mean()).sort("position")["clicked"].to_numpy()
    assert np.abs(naive / naive[0] / looked - 1).max() > 0.2  # clicks by position alone are biased by the ranking


def test_pairs_that_were_hardly_shown_flatter_no_position():
    shown, _ = shoppers(20_000, LOOKED)
    times = pl.col("request_id").rank("dense").over("query").cast(pl.Int64)
    rare = shown.with_columns(query=pl.format("{} {}", "query", times // 4))  # nobody saw a pair more than four times
    assert np.abs(by_model(rare, 5).value_K / LOOKED - 1).max() < 0.07


def test_few_clicks_lean_on_what_is_usual():
    """Two items in both orders, of which only the upper one was ever clicked."""
    once = pl.DataFrame(
        {
            "request_id": [0, 0, 1, 1],
            "query": "q",
            "item_id": ["a", "b", "b", "a"],
            "position": [0, 1, 0, 1],
            "clicked": [True, False, True, False],
        }
    )
    often = pl.concat([once.with_columns(pl.col("request_id") + 2 * turn) for turn in range(200)])
    assert 0.3 < by_model(once, 2).value_K[1] < 0.5
    assert by_model(often, 2).value_K[1] < 0.02


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = []
    for seed in range(6):
        shown, _ = shoppers(3000, LOOKED, seed=seed)
        found = by_model(shown, 5, seed=seed)
        held += ((found.low_K <= LOOKED) & (found.high_K >= LOOKED))[1:].tolist()
    assert np.mean(held) > 0.8


def test_positions_that_nothing_ties_together_are_told():
    shown, _ = shoppers(500, LOOKED)
    fixed = shown.with_columns(item_id=pl.col("position").cast(pl.String))
    with pytest.raises(DataError, match=r"position 1 shares no clicked item with the others.*serve\.swap_rate"):
        by_model(fixed, 5)


def test_a_pair_of_positions_without_clicks_is_told():
    shown, _ = shoppers(1000, LOOKED, swaps=1.0)
    with pytest.raises(DataError, match=r"positions 1 and 2, in random order, got \d+ and 0 clicks"):
        by_swaps(shown.with_columns(clicked=pl.col("clicked") & (pl.col("position") != 2)), 5)


def test_few_swaps_fall_back_to_the_model():
    shown, _ = shoppers(20_000, LOOKED, swaps=0.0001)
    assert examination(shown, 5).method == "position-based model"
    assert examination(shoppers(200_000, LOOKED, swaps=0.5)[0], 5).method == "swaps"
    assert examination(shown.drop("swap"), 5).method == "position-based model"


def test_positions_further_down_are_as_likely_as_the_last():
    found = by_model(shoppers(20_000, LOOKED)[0], 3)
    assert found.at(np.array([0, 2, 4, 99])).tolist() == [1.0, *[found.value_K[2]] * 3]
    assert found.as_dict()["value"] == np.round(found.value_K, 4).tolist()


def test_weighted_clicks_tell_relevance_where_plain_clicks_mislead():
    shown, attraction = shoppers(200_000, LOOKED, noise=0.6)
    found = relevance(shown, by_model(shown, 5)).filter(pl.col("shown") > 300)
    expected = truth(attraction, found)
    plain = (found["clicks"] / found["shown"]).to_numpy()
    error = np.abs(found["relevance"].to_numpy() - expected)
    assert error.mean() < 0.03
    assert np.abs(plain - expected).mean() > 3 * error.mean()
    inside = (found["low"].to_numpy() <= expected) & (found["high"].to_numpy() >= expected)
    assert inside.mean() > 0.85
    assert (found["effective"] <= found["shown"]).all()


def test_a_weight_is_cut_off():
    shown = pl.DataFrame(
        {"request_id": [0, 0], "query": ["q", "q"], "item_id": ["a", "b"], "position": [0, 1], "clicked": [False, True]}
    )
    rare = by_model(shoppers(2000, LOOKED)[0], 2)
    rare.value_K[1] = 0.001
    found = relevance(shown, rare, clip=4.0, strength=0.0)
    assert dict(found.select("item_id", "relevance").iter_rows()) == {"a": 0.0, "b": 4.0}


def test_cascade_counts_what_was_looked_at():
    shown = pl.DataFrame(
        {
            "request_id": ["1", "1", "1", "2", "2"],
            "query": ["q"] * 5,
            "item_id": ["a", "b", "c", "a", "b"],
            "position": [0, 1, 2, 0, 1],
            "clicked": [False, True, False, False, False],
        }
    )
    found = cascade(shown)
    assert found.rows() == [("q", "a", 2, 0, 0.0), ("q", "b", 2, 1, 0.5)]


def test_a_mean_under_another_policy():
    generator = np.random.default_rng(0)
    arm = generator.choice(3, 50_000, p=[0.7, 0.2, 0.1])
    rate, wanted = np.array([0.1, 0.3, 0.5]), np.array([0.1, 0.3, 0.6])
    clicks = generator.random(len(arm)) < rate[arm]
    found = weighted_mean(clicks.astype(float), (wanted / [0.7, 0.2, 0.1])[arm])
    assert found.low < rate @ wanted < found.high
    assert abs(found.value - rate @ wanted) < 0.01
    assert abs(clicks.mean() - rate @ wanted) > 0.1
    assert found.effective < len(arm) / 2
    assert weighted_mean(clicks.astype(float), np.ones(len(arm))).effective == len(arm)
    with pytest.raises(DataError, match="all weights are 0"):
        weighted_mean(np.ones(2), np.zeros(2))


def test_click_targets_are_debiased_shares_that_trust_few_clicks_little():
    seen = Examination(np.array([1.0, 0.5, 0.05]), np.zeros(3), np.ones(3), "test", 1)
    rows = [("r1", "drill", "a", 0, 1), ("r1", "drill", "b", 1, 0), ("r1", "drill", "c", 2, 1)]
    rows += [("r2", "drill", "b", 0, 0), ("r2", "drill", "a", 1, 3), ("r3", "lamp", "d", 0, 0)]
    shown = pl.DataFrame(rows, ["request_id", "query", "item_id", "position", "gain"], orient="row")
    found = click_targets(shown, seen, clip=10.0, strength=5.0)
    # a: 1 / 1 and 3 / 0.5; c: 1 / 0.05, cut off at 10
    count = (1 + 6 + 10) ** 2 / (1**2 + 6**2 + 10**2)
    trust = count / (count + 5)
    expected = [
        ("drill", "a", trust * 7 / 17),
        ("drill", "b", 0.0),
        ("drill", "c", trust * 10 / 17),
        ("lamp", "d", 0.0),
    ]
    assert found.rows() == [(query, item, pytest.approx(share)) for query, item, share in expected]
