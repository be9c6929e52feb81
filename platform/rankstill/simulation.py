"""SIMULATION: shoppers in a generated shop, whose demand drifts; for tests and the demo.

A shopper looks at a position with a probability that falls with it, and clicks an item that was looked at the likelier
the better it fits, sometimes by mistake. When demand drifts, the shop sells further types of products, and a share of
the shoppers call the old ones by words that nobody used before, for which the shop's search finds anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import polars as pl

from rankstill.catalogue import Shelves, choose_candidates, grade
from rankstill.catalogue_items import Item, draw_items, write_items
from rankstill.catalogue_queries import Query, draw_queries

LOOKED = 1.0
"""A position is looked at as (position + 1) ** -LOOKED."""
CLICKED = (0.01, 0.05, 0.2, 0.5)
"""How likely an item that was looked at is clicked, by how well it fits."""
SEASONAL = 3
"""One type in so many comes with the drift."""
STRANGE = 0.6
"""Share of what is found for a new word that may be any item."""
SLANG = ("zorbo", "quindle", "faplet", "mirvo", "tashik")
"""Words that mean nothing yet."""


@dataclass(frozen=True)
class Visit:
    """What one shopper asks, and what the shop's search found for it, in no order."""

    query: str
    items: list[dict[str, str]]
    """Of each: id and title."""
    grades: list[int]
    """How well each fits, 0 to 3; the simulation's secret."""


@dataclass
class SimulatedShop:
    """A shop and its shoppers; the same seed gives the same shop and, visit by visit, the same shoppers."""

    items: int = 800
    queries: int = 160
    candidates: int = 10
    seed: int = 0
    quiet: int = 0
    """Further queries that were judged and held out, and that nobody asks."""
    _asked: dict[bool, list[Visit]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        rng = Random(self.seed)  # noqa: S311 (made-up goods, no secrets)
        stock = draw_items(rng, self.items)
        table = write_items(rng, stock)
        kinds = sorted({item.kind.name for item in stock})
        self.seasonal = set(kinds[::SEASONAL])
        """Types that come with the drift."""
        usual = [name for name in kinds if name not in self.seasonal]
        self.slang = dict(zip(usual, SLANG, strict=False))
        """What shoppers call some of the others then."""
        old = [place for place, item in enumerate(stock) if item.kind.name not in self.seasonal]
        asked = draw_queries(rng, stock, self.queries)
        known = [query for query in asked if query.kind.name not in self.seasonal]
        further = [query for query in asked if query.kind.name in self.seasonal]
        renamed = [self._renamed(query) for query in known if query.kind.name in self.slang]
        within = {place: number for number, place in enumerate(old)}
        moved = [query._replace(target=within[query.target]) for query in known]
        before = _visits(rng, [stock[place] for place in old], table[old], moved, self.candidates)
        after = _visits(rng, stock, table, renamed, self.candidates, round(STRANGE * self.candidates))
        after += _visits(rng, stock, table, further, self.candidates)
        self._asked = {False: before, True: after}
        asked_for = {visit.query for visit in before + after}
        stocked = [stock[place] for place in old]
        further = draw_queries(rng, stocked, self.quiet) if self.quiet else []
        others = _visits(rng, stocked, table[old], further, self.candidates)
        self._quiet = [visit for visit in others if visit.query not in asked_for]

    def judgements(self) -> pl.DataFrame:
        """What somebody judged before demand drifted: query, item_id, title, label, and split where it is given."""
        held = [(visit, ("valid", "test")[turn % 2]) for turn, visit in enumerate(self._quiet)]
        rows = [
            {"query": visit.query, "item_id": item["id"], "title": item["title"], "label": float(label), "split": split}
            for visit, split in [*((visit, None) for visit in self._asked[False]), *held]
            for item, label in zip(visit.items, visit.grades, strict=True)
        ]
        return pl.DataFrame(rows, schema_overrides={"split": pl.String})

    def visit(self, rng: Random, drifted: float = 0.0) -> Visit:
        """The next shopper, who asks for what is new with probability `drifted`."""
        visit = rng.choice(self._asked[rng.random() < drifted])
        places = rng.sample(range(len(visit.items)), len(visit.items))
        return Visit(visit.query, [visit.items[place] for place in places], [visit.grades[place] for place in places])

    def _renamed(self, query: Query) -> Query:
        """A query for the same thing, in new words."""
        forms = list(query.kind.attributes.values())
        words = [forms[place][value][0] for place, value in query.wanted.items()]
        return query._replace(text=" ".join([*words[:1], self.slang[query.kind.name]]).lower())


def clicks(rng: Random, grades: Sequence[int]) -> list[int]:
    """Positions, from 0, that a shopper clicks, of items that fit so well in the order shown."""
    chances = [(place + 1) ** -LOOKED * CLICKED[fits] for place, fits in enumerate(grades)]
    return [place for place, chance in enumerate(chances) if rng.random() < chance]


def logged(
    rng: Random, visit: Visit, order: Sequence[int], version: str, request: str, at: datetime
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The impression and the clicks of a shopper, as `EventLog` stores them.

    Items are shown in an order (places, best first) in which two neighbours changed places with a chance of a half.
    """
    shown, upper = list(order), rng.randrange(len(order) - 1)
    if rng.random() < 0.5:
        shown[upper], shown[upper + 1] = shown[upper + 1], shown[upper]
    items = [
        {"item_id": visit.items[place]["id"], "text": visit.items[place]["title"], "position": n, "score": -float(n)}
        for n, place in enumerate(shown)
    ]
    told = {"request_id": request, "query": visit.query, "model_version": version, "user": None, "at": at}
    events = [
        {"event_id": f"{request}-{n}", "event": "click", "request_id": request, "position": n, "at": at}
        for n in clicks(rng, [visit.grades[place] for place in shown])
    ]
    return {**told, "items": items, "swap": upper, "propensity": 0.5}, events


def _visits(
    rng: Random, stock: Sequence[Item], table: pl.DataFrame, queries: Sequence[Query], count: int, strange: int = 0
) -> list[Visit]:
    """What each query finds: `count` items, of which so many `strange` ones may be any."""
    shelves = Shelves(stock)
    ids, titles = table["item_id"].to_list(), table["title"].to_list()
    found: dict[str, Visit] = {}
    for query in queries:
        places = choose_candidates(rng, shelves, query, count - strange)
        places += [place for place in rng.sample(range(len(stock)), strange) if place not in places]
        items = [{"id": ids[place], "title": titles[place]} for place in places]
        text = query.text.lower()
        found.setdefault(text, Visit(text, items, [grade(query, stock[place]) for place in places]))
    return [visit for visit in found.values() if len(set(visit.grades)) > 1]
