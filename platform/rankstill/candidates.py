"""More pairs than judgements: unlabelled items for queries, and queries made of the words of items."""

import re
from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from rankstill.bm25 import Bm25
from rankstill.text import digest, normalise_query

LEADING_WORDS = 16
"""Words at the start of an item's text, where its title is, that a query is made of."""
QUERY_WORDS, QUERY_WORD_SHARES = (1, 2, 3, 4, 5), (0.1, 0.3, 0.3, 0.2, 0.1)
"""Lengths of made queries, and how often each comes: about those of product searches."""
SHORTEST_TELLING_WORD = 3
POOL = 4
"""Made queries draw the items below their best ones from this many times as many as they take."""
COLUMNS = ("query_id", "query", "item_id", "text", "split")
_WORD = re.compile(r"\w[\w'.-]*")


def unlabelled_pairs(pairs: pl.DataFrame, items: pl.DataFrame, index: Bm25, count: int) -> pl.DataFrame:
    """Up to `count` unjudged items for each query of `pairs`, best BM25 first; COLUMNS.

    `index` is of the items' texts.
    """
    ids, texts = items["item_id"].to_list(), items["text"].to_list()
    rows = []
    for (query_id, query, split), group in pairs.group_by("query_id", "query", "split", maintain_order=True):
        judged = set(group["text"])
        fresh = [place for place in index.top(str(query), count + len(judged)) if texts[place] not in judged]
        rows += [(query_id, query, ids[place], texts[place], split) for place in fresh[:count]]
    return _frame(rows)


def made_pairs(
    items: pl.DataFrame, index: Bm25, queries: int, count: int, known: Collection[str], seed: int
) -> pl.DataFrame:
    """Up to `queries` queries, each a run of words of one item's text, with up to `count` items each; COLUMNS.

    `index` is of the items' texts.

    Every source of items makes as many queries as the others, until it has no more items. A query's items are the one
    that it was made of, the best by BM25, some from further down, and, as one in six, any. Queries in `known`, among
    which are the held-out ones, are never made.
    """
    rng = np.random.default_rng(seed)
    ids, texts = items["item_id"].to_list(), items["text"].to_list()
    shuffled = items.with_row_index("place").sample(fraction=1.0, shuffle=True, seed=seed)
    in_turn = shuffled.with_columns(turn=pl.int_range(pl.len()).over("source")).sort("turn", maintain_order=True)
    made: set[str] = set(known)
    rows, anything = [], count // 6
    best = (count - anything) // 2
    for own in in_turn["place"]:
        if len(made) - len(known) == queries:
            break
        query = _run_of_words(texts[own], rng)
        if not query or query in made:
            continue
        made.add(query)
        found = index.top(query, POOL * count)
        further = rng.permutation(found[best:])[: count - 1 - best - anything]
        places = [own, *found[:best], *further, *rng.integers(len(texts), size=anything)]
        rows += [(digest(query), query, ids[place], texts[place], "train") for place in dict.fromkeys(places)]
    return _frame(rows)


def _run_of_words(text: str, rng: np.random.Generator) -> str:
    """Neighbouring words of a text's beginning; nothing where they are too short to tell items apart."""
    words = _WORD.findall(normalise_query(text))[:LEADING_WORDS]
    length = min(int(rng.choice(QUERY_WORDS, p=QUERY_WORD_SHARES)), len(words))
    start = int(rng.integers(len(words) - length + 1))
    run = words[start : start + length]
    telling = any(len(word) >= SHORTEST_TELLING_WORD and not word.isdigit() for word in run)
    return " ".join(run) if telling else ""


def _frame(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, [(name, pl.String) for name in COLUMNS], orient="row")
