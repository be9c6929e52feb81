"""Which of the tried students to take: the Pareto set, and the winner within the budget."""

import math
from collections.abc import Mapping, Sequence

import polars as pl

from rankstill.errors import BudgetError
from rankstill.metrics import paired_difference
from rankstill.sweep_config import Budget
from rankstill.training import METRIC
from tune.trials import Variant

ABOUT = 1.1
"""Costs within this factor can't be told apart: timings of one form differ by as much."""


def pareto(variants: Sequence[Variant], candidates: int) -> list[Variant]:
    """Forms that no other one matches in nDCG@10, time and bytes and beats in one of them; best nDCG@10 first."""

    def costs(variant: Variant) -> tuple[float, float, float]:
        return -variant.ndcg["value"], variant.p99_ms(candidates), float(variant.bytes)

    def beaten(variant: Variant) -> bool:
        own = costs(variant)
        return any(
            all(theirs <= mine for theirs, mine in zip(costs(other), own, strict=True)) and costs(other) != own
            for other in variants
        )

    return sorted((variant for variant in variants if not beaten(variant)), key=costs)


def excess(variant: Variant, budget: Budget) -> dict[str, float]:
    """By what factor, as a natural logarithm, a form is over each limit that is set; at most 0 where it is within."""
    limits = {"p99_ms": (variant.p99_ms(budget.candidates), budget.p99_ms), "bytes": (variant.bytes, budget.bytes)}
    return {name: math.log(value / limit) for name, (value, limit) in limits.items() if limit}


def overshoot(variant: Variant, budget: Budget) -> float:
    """What `excess` adds up to over the limits that are not met; 0 within the budget."""
    return sum(over for over in excess(variant, budget).values() if over > 0)


def choose(
    variants: Sequence[Variant], budget: Budget, tables: Mapping[str, pl.DataFrame]
) -> tuple[Variant, list[Variant]]:
    """The winner and those within the budget that can't be told from the best of them, cheapest first.

    The best has the highest nDCG@10. Another one equals it where the paired interval of their difference over
    queries holds zero (`tables` by the form's name, see `rankstill.metrics.per_query`). The cheapest of these is the
    fastest, then the smallest; of those that cost about as much, in time and in bytes, the best wins.

    Raises:
        BudgetError: nothing is within the budget; it names the nearest and by how much it misses.
    """
    within = [variant for variant in variants if not overshoot(variant, budget)]
    if not within:
        raise BudgetError(_nearest(variants, budget))
    best = max(within, key=lambda variant: variant.ndcg["value"])
    equal = [
        variant
        for variant in within
        if variant is best or paired_difference(tables[variant.name], tables[best.name], METRIC).high >= 0
    ]
    equal.sort(key=lambda variant: (variant.p99_ms(budget.candidates), variant.bytes))
    time, size = ABOUT * equal[0].p99_ms(budget.candidates), ABOUT * equal[0].bytes
    as_cheap = [variant for variant in equal if variant.p99_ms(budget.candidates) <= time and variant.bytes <= size]
    return max(as_cheap, key=lambda variant: variant.ndcg["value"]), equal


def _nearest(variants: Sequence[Variant], budget: Budget) -> str:
    if not variants:
        return "sweep: no student was trained to its end, so that there is none to choose; see why in the report"
    nearest = min(variants, key=lambda variant: overshoot(variant, budget))
    misses = []
    time, size = nearest.p99_ms(budget.candidates), nearest.bytes
    if budget.p99_ms and time > budget.p99_ms:
        misses.append(
            f"takes {time:.1f} ms for {budget.candidates} candidates, {time / budget.p99_ms - 1:.0%} over"
            f" sweep.budget.p99_ms={budget.p99_ms:g}"
        )
    if budget.bytes and size > budget.bytes:
        misses.append(f"has {size:,} bytes, {size / budget.bytes - 1:.0%} over sweep.budget.bytes={budget.bytes}")
    return (
        f"no student is within the budget; the nearest, {nearest.name} (nDCG@10 {nearest.ndcg['value']:.4f}),"
        f" {' and '.join(misses)}; raise the limit, or let sweep.space hold smaller students"
    )
