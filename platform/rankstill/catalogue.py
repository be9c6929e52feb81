"""A generated shop (items, queries, graded judgements) for the demo, tests and scale runs.

Labels follow from what an item is, not from its words (`grade`), while texts carry what makes real
search hard: synonyms, misspellings, units written in several ways, and accessories and cross-sells
that repeat a product's name. All draws come from `random.Random`, so a seed gives the same shop
everywhere. Time and memory grow linearly with items and with queries.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from random import Random

import polars as pl

from rankstill.catalogue_items import Item, draw_items, write_items
from rankstill.catalogue_queries import Query, draw_queries, with_frequencies

POOL = 200  # items of a type looked at per query: bounds the work in a shop of any size
CANDIDATE_WEIGHTS = {
    "exact": 0.18,
    "one missed": 0.22,
    "more missed": 0.12,
    "accessory": 0.14,
    "related": 0.10,
    "same brand": 0.10,
    "random": 0.14,
}


@dataclass(frozen=True)
class ShopSize:
    """How much to generate."""

    items: int = 2000
    queries: int = 300
    candidates: int = 20
    """Judged items per query, at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "seed" else 1
            if value < least:
                raise ValueError(f"ShopSize.{field.name} is {value}; set it to {least} or more")


@dataclass(frozen=True)
class Shop:
    """What was generated.

    items: one row an item: item_id, title, description, brand.
    judgements: one row a judged pair: query, item_id, title, description, brand, label (Float64, 0 to
    3), frequency (Int64, times that shoppers ask the query; the same in all rows of a query).
    """

    items: pl.DataFrame
    judgements: pl.DataFrame


def missed(query: Query, item: Item) -> int:
    """Number of the query's constraints that an item of the same type fails."""
    wrong = sum(item.values[attribute] != value for attribute, value in query.wanted.items())
    return wrong + (query.brand is not None and query.brand != item.brand)


def grade(query: Query, item: Item) -> int:
    """Label of a pair.

    3: a product of the wanted type that meets every constraint. 2: that misses one.
    1: that misses more; or a product of a type in the same family; or an accessory of the wanted
    type. 0: anything else.
    """
    if item.kind.name != query.kind.name:
        return int(item.part is None and item.kind.family == query.kind.family)
    if item.part is not None:
        return 1
    return max(1, 3 - missed(query, item))


def generate_shop(size: ShopSize) -> Shop:
    """The shop of that size and seed.

    Raises ValueError where so few items do not give that many different queries.
    """
    rng = Random(size.seed)  # noqa: S311 - made-up goods, not secrets
    stock = draw_items(rng, size.items)
    items = write_items(rng, stock)
    shelves = Shelves(stock)
    places, texts, labels, frequencies = [], [], [], []
    for query, frequency in with_frequencies(rng, draw_queries(rng, stock, size.queries)):
        chosen = choose_candidates(rng, shelves, query, size.candidates)
        places += chosen
        texts += [query.text] * len(chosen)
        labels += [float(grade(query, stock[place])) for place in chosen]
        frequencies += [frequency] * len(chosen)
    judged = items[places].with_columns(
        pl.Series("query", texts, pl.String),
        pl.Series("label", labels, pl.Float64),
        pl.Series("frequency", frequencies, pl.Int64),
    )
    return Shop(items, judged.select("query", *items.columns, "label", "frequency"))


class Shelves:
    """Positions of items in the stock, by what candidates are drawn from."""

    def __init__(self, stock: Sequence[Item]) -> None:
        self.stock = stock
        self.products: dict[str, list[int]] = defaultdict(list)
        self.accessories: dict[str, list[int]] = defaultdict(list)
        self.families: dict[str, list[int]] = defaultdict(list)
        self.brands: dict[str, list[int]] = defaultdict(list)
        for place, item in enumerate(stock):
            (self.products if item.part is None else self.accessories)[item.kind.name].append(place)
            self.families[item.kind.family].append(place)
            self.brands[item.brand].append(place)


def _pools(rng: Random, shelves: Shelves, query: Query, count: int) -> dict[str, list[int]]:
    """Sources of candidates, named as in CANDIDATE_WEIGHTS, in random order; empty ones left out.

    A position may stand in several pools.
    """
    stock = shelves.stock
    name, brand = query.kind.name, stock[query.target].brand
    family = _sample(rng, shelves.families[query.kind.family], 2 * count)
    pools = {
        "exact": [query.target],
        "one missed": [],
        "more missed": [],
        "accessory": _sample(rng, shelves.accessories[name], count),
        "related": [place for place in family if stock[place].kind.name != name],
        "same brand": _sample(rng, shelves.brands[brand], count),
        "random": _sample(rng, range(len(stock)), count),
    }
    by_missed = ("exact", "one missed", "more missed")
    for place in _sample(rng, shelves.products[name], POOL):
        pools[by_missed[min(2, missed(query, stock[place]))]].append(place)
    rng.shuffle(pools["exact"])
    return {source: places for source, places in pools.items() if places}


def _sample(rng: Random, places: Sequence[int], count: int) -> list[int]:
    return rng.sample(places, min(count, len(places)))


def choose_candidates(rng: Random, shelves: Shelves, query: Query, count: int) -> list[int]:
    """Positions of at most `count` items, in random order: a mix by CANDIDATE_WEIGHTS."""
    pools = _pools(rng, shelves, query, count)
    chosen: dict[int, None] = {}
    while pools and len(chosen) < count:
        source = rng.choices(list(pools), [CANDIDATE_WEIGHTS[name] for name in pools])[0]
        chosen[pools[source].pop()] = None
        if not pools[source]:
            del pools[source]
    places = list(chosen)
    rng.shuffle(places)
    return places
