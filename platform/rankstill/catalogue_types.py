"""What the generated shop sells, read from catalogue_types.yaml."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml


class ProductType(NamedTuple):
    """One kind of product. `attributes` maps a name to its values, each a tuple of written forms."""

    name: str
    family: str
    also: tuple[str, ...]
    about: str
    brands: tuple[str, ...]
    accessories: tuple[str, ...]
    attributes: dict[str, tuple[tuple[str, ...], ...]]


@cache
def product_types() -> tuple[ProductType, ...]:
    """All product types, in the order in which shops of growing size sell them."""
    text = files("rankstill").joinpath("catalogue_types.yaml").read_text(encoding="utf-8")
    return tuple(
        ProductType(
            name=entry["name"],
            family=entry["family"],
            also=_entries(entry["also"]),
            about=entry["about"],
            brands=_entries(entry["brands"]),
            accessories=_entries(entry["accessories"]),
            attributes={
                key: tuple(tuple(value.split("|")) for value in _entries(values))
                for key, values in entry["attributes"].items()
            },
        )
        for entry in yaml.safe_load(text)
    )


def _entries(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(","))
