"""Items that the page chooses candidates from."""

from rankstill.bm25 import Bm25
from rankstill.config import Data, Source
from rankstill.data import read_items
from rankstill.text import normalise


class Catalogue:
    """Items to choose candidates from."""

    def __init__(self, path: str, fields: tuple[str, ...]) -> None:
        """Raises DataError where the file can't be read."""
        source = Source(path=path)
        self._items = read_items(source, Data(sources=(source,), fields=fields), "serve.catalogue")
        self._index = Bm25(self._items["text"].to_list())

    def search(self, query: str, count: int) -> list[dict[str, str]]:
        """The best items, with id and text."""
        found = self._items[self._index.top(normalise(query), count).tolist()]
        return found.rename({"item_id": "id"}).to_dicts()
