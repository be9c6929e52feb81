import numpy as np
import polars as pl
import pytest

from rankstill.errors import BudgetError
from rankstill.sweep_config import Budget
from tune.select import choose, excess, overshoot, pareto
from tune.trials import Variant


def variant(name: str, ndcg: float, p99: float, size: int) -> Variant:
    timing = {"latency": {"50": {"p50_ms": p99 / 2, "p99_ms": p99}}, "bytes": size}
    return Variant(name, "float32", f"/{name}", "torch", {"value": ndcg, "low": ndcg, "high": ndcg}, timing)


def table(values) -> pl.DataFrame:
    return pl.DataFrame({"query_id": [str(n) for n in range(len(values))], "ndcg@10": values})


def test_the_pareto_set_is_what_nothing_beats():
    best, fast, small = variant("best", 0.9, 50, 900), variant("fast", 0.8, 10, 900), variant("small", 0.7, 40, 100)
    same = variant("as best", 0.9, 50, 900)
    beaten = [variant("slower", 0.8, 11, 900), variant("worse", 0.69, 40, 100), variant("larger", 0.9, 50, 901)]
    assert pareto([*beaten, small, best, fast, same], 50) == [best, same, fast, small]
    assert pareto([], 50) == []


def test_the_best_within_the_budget_wins():
    noise = np.random.default_rng(0).normal(0, 0.01, 200)
    tables = {
        "good float32": table(0.9 + noise),
        "fair float32": table(0.8 + noise),
        "slow float32": table(0.95 + noise),
    }
    good, fair, slow = variant("good", 0.9, 50, 9), variant("fair", 0.8, 10, 5), variant("slow", 0.95, 70, 1)
    winner, equal = choose([fair, slow, good], Budget(p99_ms=60), tables)
    assert (winner, equal) == (good, [good])
    assert choose([fair, slow, good], Budget(), tables)[0] == slow
    assert choose([fair, slow, good], Budget(p99_ms=60, bytes=8), tables)[0] == fair


def test_of_those_that_can_not_be_told_apart_the_cheapest_wins():
    generator = np.random.default_rng(0)
    values = generator.uniform(0.5, 1.0, 300)
    tables = {
        "best float32": table(values),
        "near float32": table(values + generator.normal(-0.001, 0.2, 300)),
        "far float32": table(values - 0.05),
    }
    best, near, far = variant("best", 0.75, 50, 9), variant("near", 0.749, 20, 9), variant("far", 0.7, 1, 1)
    winner, equal = choose([best, near, far], Budget(p99_ms=60), tables)
    assert (winner, equal) == (near, [near, best])


def test_of_those_that_cost_about_the_same_the_best_wins():
    tables = {f"{name} float32": table(np.random.default_rng(0).uniform(0.5, 1.0, 300)) for name in "abcde"}
    ours = [
        variant("a", 0.70, 20, 100),
        variant("b", 0.72, 21.9, 109),
        variant("c", 0.71, 21, 100),
        variant("d", 0.74, 22.1, 100),
        variant("e", 0.75, 21, 111),
    ]
    winner, equal = choose(ours, Budget(), tables)
    assert winner.trial == "b", "neither 'd', which is slower, nor 'e', which is larger"
    assert [one.trial for one in equal] == ["a", "c", "e", "b", "d"]


def test_a_budget_that_nothing_meets_names_the_nearest_and_by_how_much_it_misses():
    variants = [variant("a", 0.9, 120, 2000), variant("b", 0.8, 66, 1500)]
    with pytest.raises(BudgetError) as caught:
        choose(variants, Budget(p99_ms=60, bytes=1000), {})
    assert "b float32 (nDCG@10 0.8000), takes 66.0 ms for 50 candidates, 10% over sweep.budget.p99_ms=60" in str(
        caught.value
    )
    assert "1,500 bytes, 50% over sweep.budget.bytes=1000" in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(BudgetError, match="no student was trained to its end"):
        choose([], Budget(), {})


def test_excess_is_measured_in_factors():
    one = variant("a", 0.9, 120, 500)
    assert excess(one, Budget(p99_ms=60, bytes=1000)) == pytest.approx({"p99_ms": np.log(2), "bytes": -np.log(2)})
    assert overshoot(one, Budget(p99_ms=60, bytes=1000)) == pytest.approx(np.log(2))
    assert excess(one, Budget()) == {}
