"""Queries of the generated shop: what shoppers want, how they type it, and how often."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from rankstill.catalogue_items import Item
from rankstill.catalogue_types import ProductType

CONSTRAINTS_SHARE = (0.15, 0.35, 0.35, 0.15)  # queries with 0, 1, 2 and 3 attribute constraints
BRANDED_SHARE = 0.25
SYNONYM_SHARE = 0.55
LINKED_SHARE = 0.25  # queries that say "w/" or "with" before a constraint
MISSPELT_SHARE = 0.2
TITLE_CASE_SHARE = 0.05
SHORTEST_MISSPELT = 5  # letters
DRAWS_PER_QUERY = 50  # tries for one more distinct query before giving up, on average


class Query(NamedTuple):
    """What a shopper wants: a type, a brand if not None, and {attribute position: value position}.

    `target` is the position in the stock of a product that meets all of it.
    """

    text: str
    kind: ProductType
    brand: str | None
    wanted: dict[int, int]
    target: int


def draw_queries(rng: Random, stock: Sequence[Item], count: int) -> list[Query]:
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


def with_frequencies(rng: Random, queries: Sequence[Query]) -> list[tuple[Query, int]]:
    """Each query with its frequency: Zipf's law over a rank in which short queries tend to come first."""
    length = [len(query.text.split()) + 2 * rng.random() for query in queries]
    frequencies = [0] * len(queries)
    for rank, place in enumerate(sorted(range(len(queries)), key=length.__getitem__), start=1):
        frequencies[place] = max(1, int(5 * len(queries) / rank**1.1))
    return list(zip(queries, frequencies, strict=True))
