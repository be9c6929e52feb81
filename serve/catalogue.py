"""Items that the page chooses candidates from."""

import polars as pl

from rankstill.bm25 import Bm25
from rankstill.config import Data, Source
from rankstill.data import read_items
from rankstill.text import normalise


def read_catalogue(path: str, fields: tuple[str, ...]) -> pl.DataFrame:
    """A file of items as (item_id, text).

    Raises:
        DataError: it can't be read.
    """
    source = Source(path=path)
    return read_items(source, Data(sources=(source,), fields=fields), "serve.catalogue")


class Catalogue:
    """Items to choose candidates from."""

    def __init__(self, path: str, fields: tuple[str, ...]) -> None:
        """Raises DataError where the file can't be read."""
        self._items = read_catalogue(path, fields)
        self._index = Bm25(self._items["text"].to_list())

    def search(self, query: str, count: int) -> list[dict[str, str]]:
        """The best items, with id and text."""
        found = self._items[self._index.top(normalise(query), count).tolist()]
        return found.rename({"item_id": "id"}).to_dicts()
