"""The order in which documents are shown: best first, with two neighbours in random order now and then."""

import random
from dataclasses import dataclass, replace

from rankstill.served import Version
from serve.messages import Scores
from serve.wire import best_first

SWAPPED_DEPTH = 10
"""Positions among which neighbours are put in random order."""


@dataclass(frozen=True)
class Ranked:
    """A request's scores, from the version that answered, and the order that they are shown in."""

    version: Version
    scores: Scores
    order: list[int]
    """Places of the documents, best first."""
    swap: int | None = None
    """Upper position of the neighbours whose order was drawn."""


def rank(version: Version, scores: Scores, count: int | None, swap_rate: float, draw: random.Random) -> Ranked:
    """Put documents in order; a share of `swap_rate` of the answers has two neighbours in random order.

    Where these two change places, they change scores too, so that an order by score is the one that is shown.
    """
    order = best_first(scores.relevance_N, count)
    last = min(len(order), SWAPPED_DEPTH) - 1
    if last < 1 or draw.random() >= swap_rate:
        return Ranked(version, scores, order)
    upper = draw.randrange(last)
    if draw.random() < 0.5:
        one, other = order[upper], order[upper + 1]
        order[upper], order[upper + 1] = other, one
        changed = {}
        for name in ("logits_N", "relevance_N"):
            values = getattr(scores, name).copy()
            values[[one, other]] = values[[other, one]]
            changed[name] = values
        scores = replace(scores, **changed)
    return Ranked(version, scores, order, upper)
