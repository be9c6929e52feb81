import numpy as np
import pytest
from scipy.stats import norm

from rankstill.canary import FEWEST, Rules, Tally, difference, share, verdict

RULES = Rules()


def tally(requests: int, clicks: float) -> Tally:
    return Tally(requests, clicks, clicks)


def canary(gain: float, seed: int, rate: float = 0.3, look: int = 250) -> str:
    """How a canary with clicks at a rate that drifts ends."""
    generator = np.random.default_rng(seed)
    stages: list[tuple[Tally, Tally]] = []
    for step in range(100_000):
        stage, portion = share(stages, RULES)
        if stage == len(stages):
            stages.append((tally(0, 0), tally(0, 0)))
        now = rate * (1 + 0.3 * np.sin(step / 100))
        challenger = int(generator.binomial(look, portion))
        added = (
            tally(look - challenger, generator.binomial(look - challenger, now)),
            tally(challenger, generator.binomial(challenger, now * (1 + gain))),
        )
        stages[stage] = (stages[stage][0] + added[0], stages[stage][1] + added[1])
        found, _ = verdict(stages, RULES)
        if found != "open":
            return found
    raise AssertionError("a canary never ended")


@pytest.mark.parametrize(("gain", "least", "most"), [(0.0, 0.0, 0.1), (-0.05, 0.0, 0.0), (0.05, 0.8, 1.0)])
def test_canaries_promote_what_is_better_and_little_else(gain, least, most):
    promoted = np.mean([canary(gain, seed) == "better" for seed in range(60)])
    assert least <= promoted <= most


def test_much_worse_is_never_promoted_and_told_as_worse_where_that_is_sure():
    assert "better" not in {canary(-0.4, seed) for seed in range(10)}
    assert verdict([(tally(9_000, 2_700), tally(1_000, 180))], RULES)[0] == "worse"


def test_the_bound_is_the_mixtures():
    stages = [(tally(40_000, 12_000), tally(20_000, 6_300))]
    found = difference(stages, RULES)
    assert found.value == pytest.approx(0.015)
    assert found.requests == 20_000
    # The bound is where the mixture of likelihood ratios, integrated by hand, comes to 1 / (2 alpha).
    variance = 0.3 * 0.7 / 40_000 + 0.315 * 0.685 / 20_000
    width, effects = 0.05 * 0.315, np.linspace(-0.2, 0.2, 400_001)
    ratios = norm.pdf(found.high - found.value, effects, variance**0.5) / norm.pdf(
        found.high - found.value, 0, variance**0.5
    )
    mixture = np.trapezoid(ratios * norm.pdf(effects, 0, width), effects)
    assert mixture == pytest.approx(1 / (2 * RULES.alpha), rel=0.01)
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_looking_always_is_wider_than_looking_once():
    stages = [(tally(10_000, 3_000), tally(10_000, 3_000))]
    found = difference(stages, RULES)
    once = norm.ppf(1 - RULES.alpha) * (2 * 0.21 / 10_000) ** 0.5
    assert found.high > 1.3 * once


def test_stages_of_different_hours_do_not_mix():
    # Worse in each stage, and better in the sum, for the challenger has more requests in the good hour.
    stages = [(tally(90_000, 9_000), tally(10_000, 900)), (tally(10_000, 8_000), tally(90_000, 70_000))]
    champion, challenger = (sum((pair[side] for pair in stages), tally(0, 0)) for side in (0, 1))
    assert challenger.mean > champion.mean
    assert verdict(stages, RULES)[0] == "worse"


def test_nothing_is_decided_of_few_or_of_nothing():
    few = [(tally(FEWEST - 1, 0), tally(10_000, 9_000))]
    assert verdict(few, RULES)[0] == "open"
    assert verdict([], RULES)[0] == "open"
    silent = [(tally(5_000, 0), tally(5_000, 0))]
    assert verdict(silent, RULES)[0] == "open"
    assert verdict([(tally(5_000, 0), tally(300_000, 0))], RULES)[0] == "equal"


def test_shares_grow_with_the_requests_of_each_stage():
    stages: list[tuple[Tally, Tally]] = []
    seen = []
    for count in (0, 199, 200, 1000, 5000, 10**6):
        stage, portion = share(stages, RULES)
        seen.append((stage, portion))
        if stage == len(stages):
            stages.append((tally(0, 0), tally(0, 0)))
        stages[stage] = (tally(100, 0), tally(count, 0))
    assert seen == [(0, 0.01), (0, 0.01), (0, 0.01), (1, 0.05), (2, 0.25), (3, 0.5)]
    assert share(stages, RULES) == (3, 0.5)
