"""Whether a challenger is better than the champion, decided while traffic comes in, as often as one likes to look.

Requests are counted by stage, within which the challenger's share is fixed: what changes from stage to stage (the hour,
the season) then touches both alike. The differences of the stages are averaged, and their mean is held against a
confidence sequence, which holds at all times at once, so that looking after every request costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

FEWEST = 100
"""Requests of each side before anything is decided: intervals are those of large samples."""
Verdict = Literal["better", "worse", "equal", "open"]


@dataclass(frozen=True)
class Tally:
    """What requests of one version in one stage came to."""

    requests: float
    total: float
    """Sum of their metric, such as clicks."""
    squares: float
    """Sum of its squares."""

    def __add__(self, other: "Tally") -> "Tally":
        """Of both."""
        return Tally(self.requests + other.requests, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Of the metric; 0 of no requests."""
        return self.total / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion, with the confidence sequence at this time."""

    value: float
    low: float
    high: float
    requests: float
    """Of the challenger."""


@dataclass(frozen=True)
class Rules:
    """How a canary goes on, and when it ends."""

    alpha: float = 0.05
    """Chance, over the whole canary, that a challenger which is not better is called better; and as much for worse."""
    effect: float = 0.05
    """Gain that matters, as a share of the champion's metric. What is surely less ends the canary, and the confidence
    sequence is narrowest where it can tell such a gain."""
    most: float = 200_000
    """Requests of the challenger after which a canary that has told nothing ends."""
    shares: tuple[tuple[float, float], ...] = ((0.01, 200), (0.05, 1000), (0.25, 5000), (0.5, np.inf))
    """Stages: the challenger's share of the traffic, and its requests in that stage after which the next one begins."""


def difference(stages: Sequence[tuple[Tally, Tally]], rules: Rules) -> Difference:
    """Challenger minus champion, from (champion, challenger) of each stage.

    Stages count by n_a n_b / (n_a + n_b), which is as the inverse of their variances where both sides vary alike. The
    confidence sequence is that of the mixture sequential probability ratio test with a normal mixture: with variance V
    and mixing variance t, both bounds are sqrt(V (V + t) / t * (log((V + t) / V) + 2 log(1 / a))) away (Johari, Koomen,
    Pekelis and Walsh, "Peeking at A/B Tests", 2017), where a is 2 alpha, for each bound alone errs half as often.
    """
    used = [(one, other) for one, other in stages if one.requests and other.requests]
    champion, challenger = (sum((pair[side] for pair in used), Tally(0, 0, 0)) for side in (0, 1))
    if min(champion.requests, challenger.requests) < FEWEST:
        return Difference(0.0, -np.inf, np.inf, challenger.requests)
    weights = np.array([one.requests * other.requests / (one.requests + other.requests) for one, other in used])
    value = float(weights @ [other.mean - one.mean for one, other in used] / weights.sum())
    spread = _variance(champion), _variance(challenger)
    variances = np.array([spread[0] / one.requests + spread[1] / other.requests for one, other in used])
    variance = float(weights**2 @ variances / weights.sum() ** 2)
    mixing = (rules.effect * max(champion.mean, challenger.mean)) ** 2
    if not variance or not mixing:
        return Difference(value, -np.inf, np.inf, challenger.requests)
    scale = variance * (variance + mixing) / mixing
    bound = float(np.sqrt(scale * (np.log((variance + mixing) / variance) + 2 * np.log(1 / (2 * rules.alpha)))))
    return Difference(value, value - bound, value + bound, challenger.requests)


def share(stages: Sequence[tuple[Tally, Tally]], rules: Rules) -> tuple[int, float]:
    """The stage that a canary is in, by its requests in each stage so far, and the challenger's share in it."""
    for stage, (portion, most) in enumerate(rules.shares):
        if stage >= len(stages) or stages[stage][1].requests < most:
            return stage, portion
    return len(rules.shares) - 1, rules.shares[-1][0]


def verdict(stages: Sequence[tuple[Tally, Tally]], rules: Rules) -> tuple[Verdict, Difference]:
    """What is sure by now: that the challenger is better, or worse, or not better by an `effect`; or nothing yet."""
    found = difference(stages, rules)
    champion = sum((one for one, _ in stages), Tally(0, 0, 0))
    if found.low > 0:
        return "better", found
    if found.high < 0:
        return "worse", found
    if found.high < rules.effect * champion.mean or found.requests >= rules.most:
        return "equal", found
    return "open", found


def _variance(tally: Tally) -> float:
    """Of one request's metric, with one success and one failure more, so that it is never 0."""
    mean = (tally.total + 1) / (tally.requests + 2)
    return max((tally.squares + 1) / (tally.requests + 2) - mean**2, 0.0)
