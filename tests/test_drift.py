import numpy as np
import polars as pl
import pytest

from rankstill.drift import drift, moved, population_stability, unknown


def shown(queries: list[str], score: float = 0.0, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    rows = [
        {"request_id": f"{seed}-{n}", "query": query, "item_id": f"{query}-{place}", "score": draw.normal(score)}
        for n, query in enumerate(queries)
        for place in range(2)
    ]
    return pl.DataFrame(rows)


def drawn(shares: dict[str, float], count: int, seed: int) -> list[str]:
    return list(np.random.default_rng(seed).choice(list(shares), count, p=list(shares.values())))


def test_the_index_is_the_sum_of_differences_times_logs():
    before, now = np.array([5000.0, 5000.0]), np.array([7500.0, 2500.0])
    by_hand = 0.25 * np.log(0.75 / 0.5) - 0.25 * np.log(0.25 / 0.5)
    assert population_stability(before, now) == pytest.approx(by_hand - 2 / 10_000, abs=1e-3)


def test_chance_alone_is_no_drift():
    queries = {f"q{n}": 1 / 40 for n in range(40)}
    tables = [shown(drawn(queries, 200, seed), seed=seed) for seed in range(16)]
    found = [drift(*pair) for pair in zip(tables[::2], tables[1::2], strict=True)]
    assert all(np.mean([one[name] for one in found]) < 0.1 for name in ("queries", "items", "scores"))


def test_each_kind_of_drift_is_told():
    usual = {"drill": 0.5, "lamp": 0.5}
    before = shown(drawn(usual, 300, 0))
    assert moved(drift(before, shown(drawn(usual, 300, 1), seed=1)), 0.25) == []
    assert moved(drift(before, shown(drawn(usual, 300, 1), score=2.0, seed=1)), 0.25) == ["scores"]
    other = drift(before, shown(drawn({"drill": 0.1, "sofa": 0.9}, 300, 1), seed=1))
    assert moved(other, 0.25) == ["queries", "items"]


def test_few_requests_tell_nothing():
    few, many = shown(["drill"] * 49), shown(["lamp"] * 500, seed=1)
    assert drift(few, many) == drift(many, few) == {"queries": None, "items": None, "scores": None}
    assert moved(drift(few, many), 0.0) == []


def test_what_no_judgement_knows_is_a_share():
    table = shown(["drill", "drill", "sofa", "lamp"])
    found = unknown(table, pl.Series(["drill", "lamp"]), pl.Series(["drill-0", "drill-1", "lamp-0"]))
    assert found == {"queries": 0.25, "items": pytest.approx(3 / 8)}
