"""BM25 over item texts: finds candidates for queries, and is the baseline of every report."""

import re

import bm25s
import numpy as np
import polars as pl
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


class Bm25:
    """Lucene's BM25 (k1 1.5, b 0.75) over distinct item texts."""

    def __init__(self, texts: list[str]) -> None:
        self._index = bm25s.BM25(method="lucene")
        self._index.index([_words(text) for text in texts], show_progress=False)
        self._texts = len(texts)

    def scores(self, query: str) -> NDArray[np.float32]:
        """Score of every text, in the order given; zeros where no word is known."""
        known = [word for word in _words(query) if word in self._index.vocab_dict]
        return self._index.get_scores(known) if known else np.zeros(self._texts, dtype=np.float32)

    def top(self, query: str, count: int) -> NDArray[np.int64]:
        """Positions of the best `count` texts that share a word with the query, best first."""
        scores = self.scores(query)
        best = np.argpartition(-scores, min(count, scores.size - 1))[:count]
        best = best[np.argsort(-scores[best], kind="stable")]
        return best[scores[best] > 0]


def score_pairs(pairs: pl.DataFrame) -> NDArray[np.float64]:
    """BM25 of each pair (columns query, text), with word statistics of the pairs' own items."""
    texts = pairs["text"].unique(maintain_order=True)
    index = Bm25(texts.to_list())
    position = dict(zip(texts, range(len(texts)), strict=True))
    places = np.array([position[text] for text in pairs["text"]], dtype=np.int64)
    scores = np.empty(pairs.height, dtype=np.float64)
    for (query,), rows in pairs.with_row_index("row").group_by("query", maintain_order=True):
        at = rows["row"].to_numpy()
        scores[at] = index.scores(str(query))[places[at]]
    return scores


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
