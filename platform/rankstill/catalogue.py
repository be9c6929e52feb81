"""A generated shop (items, queries, graded judgements) for the demo, tests and scale runs.

Labels follow from what an item is, not from its words (`grade`), while texts carry what makes real
search hard: synonyms, misspellings, units written in several ways, and accessories and cross-sells
that repeat a product's name. All draws come from `random.Random`, so a seed gives the same shop
everywhere. Time and memory grow linearly with items and with queries.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import NamedTuple

import polars as pl

from rankstill.catalogue_types import PRODUCT_TYPES, ProductType

ITEMS_PER_TYPE = 20  # a small shop sells fewer types, so that near misses exist
FEWEST_TYPES = 4
ACCESSORY_SHARE = 0.15
ASIDE_SHARE = 0.25  # descriptions with an aside, for each kind of aside
CONSTRAINTS_SHARE = (0.15, 0.35, 0.35, 0.15)  # queries with 0, 1, 2 and 3 attribute constraints
BRANDED_SHARE = 0.25
SYNONYM_SHARE = 0.55
LINKED_SHARE = 0.25  # queries that say "w/" or "with" before a constraint
MISSPELT_SHARE = 0.2
TITLE_CASE_SHARE = 0.05
SHORTEST_MISSPELT = 5  # letters
ACCESSORY_MAKERS = ("Fitwell", "Partona", "Univo", "Sparely")
POOL = 200  # items of a type looked at per query: bounds the work in a shop of any size
DRAWS_PER_QUERY = 50  # tries for one more distinct query before giving up, on average
CANDIDATE_WEIGHTS = {
    "exact": 0.18,
    "one missed": 0.22,
    "more missed": 0.12,
    "accessory": 0.14,
    "related": 0.10,
    "same brand": 0.10,
    "random": 0.14,
}
TITLES = (  # with the number of attribute values that each shows
    ("{brand} {model} {0} {name}, {1}", 2),
    ("{brand} {0} {1} {name}", 2),
    ("{brand} {name} {model} - {0}, {1}, {2}", 3),
    ("{name} by {brand}, {0} / {1}", 2),
    ("{0} {name} | {brand} {model}", 1),
    ("{brand} {model} {name}", 0),
)
ACCESSORY_TITLES = (
    "{part} for {brand} {model} {name}",
    "{maker} {part} for {0} {name}, fits {brand}",
    "{part} for {name}, {0} / {1} - {maker}",
    "{name} {part} by {maker}, {0}",
)
SPECIFICATIONS = (  # how one attribute is written, and what joins them
    ("{key}: {value}", "; "),
    ("{value} {key}", ", "),
    ("{key} {value}", " | "),
)
OPENERS = ("", "Customer favourite.", "New this season.", "Two-year warranty.", "Back in stock.")


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


class Item(NamedTuple):
    """What an item is. `values` holds, per attribute of its type, the position of its value.

    `part` is None for a product; an accessory has the accessory's name there, and the type, brand
    and values of the product that it fits.
    """

    kind: ProductType
    brand: str
    values: bytes
    part: str | None


class Query(NamedTuple):
    """What a shopper wants: a type, a brand if not None, and {attribute position: value position}.

    `target` is the position in the stock of a product that meets all of it.
    """

    text: str
    kind: ProductType
    brand: str | None
    wanted: dict[int, int]
    target: int


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
    stock = _draw_items(rng, size.items)
    items = _write_items(rng, stock)
    shelves = _Shelves(stock)
    places, texts, labels, frequencies = [], [], [], []
    for query, frequency in _with_frequencies(rng, _draw_queries(rng, stock, size.queries)):
        chosen = _choose_candidates(rng, shelves, query, size.candidates)
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


def _draw_items(rng: Random, count: int) -> list[Item]:
    kinds = PRODUCT_TYPES[: max(FEWEST_TYPES, count // ITEMS_PER_TYPE)]
    stock = []
    for place in range(count):
        kind = rng.choice(kinds)
        values = bytes(int(rng.random() * len(forms)) for forms in kind.attributes.values())
        # The first is a product in any shop: queries are drawn from products.
        is_part = place > 0 and rng.random() < ACCESSORY_SHARE
        part = rng.choice(kind.accessories) if is_part else None
        stock.append(Item(kind, rng.choice(kind.brands), values, part))
    return stock


def _write_items(rng: Random, stock: Sequence[Item]) -> pl.DataFrame:
    titles, descriptions, brands = [], [], []
    for item in stock:
        write = _write_product if item.part is None else _write_accessory
        title, description, brand = write(rng, item)
        titles.append(title)
        descriptions.append(description)
        brands.append(brand)
    ids = [f"B{place:08d}" for place in range(len(stock))]
    return pl.DataFrame({"item_id": ids, "title": titles, "description": descriptions, "brand": brands})


def _write_product(rng: Random, item: Item) -> tuple[str, str, str]:
    """Title, description and brand; each attribute is in one of the first two."""
    pairs = _described(rng, item)
    template, shown = rng.choice(TITLES)
    title = _title(template, pairs, brand=item.brand, model=_model(rng, item), name=item.kind.name)
    parts = [rng.choice(OPENERS), item.kind.about, _specification(rng, pairs[shown:]), *_asides(rng, item)]
    return title, " ".join(filter(None, parts)), item.brand


def _write_accessory(rng: Random, item: Item) -> tuple[str, str, str]:
    """Title, description and brand of a part, which speaks mostly of the product that it fits."""
    pairs = _described(rng, item)
    maker = rng.choice((item.brand, *ACCESSORY_MAKERS))
    model, name = _model(rng, item), item.kind.name
    words = {"part": item.part, "maker": maker, "brand": item.brand, "model": model, "name": name}
    title = _title(rng.choice(ACCESSORY_TITLES), pairs, **words)
    fits = f"Fits {item.brand} {name} {model}. {_specification(rng, pairs[2:4])}"
    return title, f"{fits} The {name} is not included.", maker


def _described(rng: Random, item: Item) -> list[tuple[str, str]]:
    """(attribute, value) of the item as shops write them, in random order."""
    attributes = zip(item.kind.attributes.items(), item.values, strict=True)
    pairs = [(key, forms[value][0]) for (key, forms), value in attributes]
    rng.shuffle(pairs)
    return pairs


def _title(template: str, pairs: Sequence[tuple[str, str]], **words: str) -> str:
    text = template.format(*(value for _, value in pairs), **words)
    return " ".join(word[:1].upper() + word[1:] for word in text.split())


def _model(rng: Random, item: Item) -> str:
    return f"{item.brand[:2].upper()}{rng.randrange(100, 10_000)}{rng.choice(('', 'S', 'X', '-2'))}"


def _specification(rng: Random, pairs: Sequence[tuple[str, str]]) -> str:
    template, join = rng.choice(SPECIFICATIONS)
    text = join.join(
        # "oak legs" says already what it is
        value if key.removesuffix("s") in value else template.format(key=key, value=value)
        for key, value in pairs
    )
    return f"{text[:1].upper()}{text[1:]}."


def _asides(rng: Random, item: Item) -> Iterator[str]:
    """Sentences that help a reader little and mislead word matching; the first teaches a synonym."""
    if rng.random() < ASIDE_SHARE:
        yield f"Also called: {rng.choice(item.kind.also)}."
    if rng.random() < ASIDE_SHARE:
        yield f"Other options: {rng.choice(rng.choice(list(item.kind.attributes.values())))[0]}."
    if rng.random() < ASIDE_SHARE:
        yield f"Goes well with our {rng.choice(PRODUCT_TYPES).name}."


def _draw_queries(rng: Random, stock: Sequence[Item], count: int) -> list[Query]:
    """Queries that differ after lowercasing, each met in full by at least one product."""
    products = [place for place, item in enumerate(stock) if item.part is None]
    queries: dict[str, Query] = {}
    for _ in range(count * DRAWS_PER_QUERY):
        query = _draw_query(rng, stock, rng.choice(products))
        queries.setdefault(query.text.lower(), query)
        if len(queries) == count:
            return list(queries.values())
    raise ValueError(
        f"ShopSize.queries is {count}, but {len(stock)} items gave only {len(queries)} different ones; "
        "ask for fewer queries or more items"
    )


def _draw_query(rng: Random, stock: Sequence[Item], target: int) -> Query:
    kind, item_brand, values, _ = stock[target]
    count = rng.choices(range(len(CONSTRAINTS_SHARE)), CONSTRAINTS_SHARE)[0]
    wanted = {place: values[place] for place in rng.sample(range(len(values)), count)}
    brand = item_brand if rng.random() < BRANDED_SHARE else None
    forms = list(kind.attributes.values())
    words = [rng.choice(forms[place][value]) for place, value in wanted.items()]
    if brand is not None:
        words.insert(0, brand)
    name = rng.choice(kind.also) if rng.random() < SYNONYM_SHARE else kind.name
    return Query(_query_text(rng, name, words), kind, brand, wanted, target)


def _query_text(rng: Random, name: str, words: Sequence[str]) -> str:
    before = rng.randint(0, len(words))
    after = list(words[before:])
    if after and rng.random() < LINKED_SHARE and not after[0].startswith(("with", "w/", "for ")):
        after.insert(0, rng.choice(("w/", "with")))
    tokens = " ".join([*words[:before], name, *after]).lower().split()
    if rng.random() < MISSPELT_SHARE:
        place = rng.randrange(len(tokens))
        tokens[place] = _misspell(rng, tokens[place])
    text = " ".join(tokens)
    return text.title() if rng.random() < TITLE_CASE_SHARE else text


def _misspell(rng: Random, word: str) -> str:
    """One letter dropped, doubled or swapped with the next; short words and numbers stay."""
    if len(word) < SHORTEST_MISSPELT or not word.isalpha():
        return word
    place = rng.randrange(1, len(word) - 1)
    head, letter, following, tail = word[:place], word[place], word[place + 1], word[place + 2 :]
    return head + rng.choice((following, 2 * letter + following, following + letter)) + tail


def _with_frequencies(rng: Random, queries: Sequence[Query]) -> list[tuple[Query, int]]:
    """Each query with its frequency: Zipf's law over a rank in which short queries tend to come first."""
    length = [len(query.text.split()) + 2 * rng.random() for query in queries]
    frequencies = [0] * len(queries)
    for rank, place in enumerate(sorted(range(len(queries)), key=length.__getitem__), start=1):
        frequencies[place] = max(1, int(5 * len(queries) / rank**1.1))
    return list(zip(queries, frequencies, strict=True))


class _Shelves:
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


def _pools(rng: Random, shelves: _Shelves, query: Query, count: int) -> dict[str, list[int]]:
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


def _choose_candidates(rng: Random, shelves: _Shelves, query: Query, count: int) -> list[int]:
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
