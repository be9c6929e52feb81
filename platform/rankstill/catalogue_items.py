"""Items of the generated shop: what they are, and how shops write of them."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import polars as pl

from rankstill.catalogue_types import ProductType, product_types

ITEMS_PER_TYPE = 20  # a small shop sells fewer types, so that near misses exist
FEWEST_TYPES = 4
ACCESSORY_SHARE = 0.15
ASIDE_SHARE = 0.25  # descriptions with an aside, for each kind of aside
ACCESSORY_MAKERS = ("Fitwell", "Partona", "Univo", "Sparely")
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


class Item(NamedTuple):
    """What an item is. `values` holds, per attribute of its type, the position of its value.

    `part` is None for a product; an accessory has the accessory's name there, and the type, brand
    and values of the product that it fits.
    """

    kind: ProductType
    brand: str
    values: bytes
    part: str | None


def draw_items(rng: Random, count: int) -> list[Item]:
    """That many items; the first is a product."""
    kinds = product_types()[: max(FEWEST_TYPES, count // ITEMS_PER_TYPE)]
    stock = []
    for place in range(count):
        kind = rng.choice(kinds)
        values = bytes(int(rng.random() * len(forms)) for forms in kind.attributes.values())
        # The first is a product in any shop: queries are drawn from products.
        is_part = place > 0 and rng.random() < ACCESSORY_SHARE
        part = rng.choice(kind.accessories) if is_part else None
        stock.append(Item(kind, rng.choice(kind.brands), values, part))
    return stock


def write_items(rng: Random, stock: Sequence[Item]) -> pl.DataFrame:
    """One row an item: item_id, title, description, brand."""
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
        yield f"Goes well with our {rng.choice(product_types()).name}."
