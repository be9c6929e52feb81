"""More pairs than judgements: unlabelled items for queries, and queries made of the words of items."""

import re
from collections.abc import Collection, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankstill.bm25 import Bm25
from rankstill.config import Mix
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


def unlabelled_pairs(
    pairs: pl.DataFrame, items: pl.DataFrame, index: Bm25, count: int, mix: Mix, seed: int
) -> pl.DataFrame:
    """Up to `count` unjudged items for each query of `pairs`, of which kinds `mix` says; COLUMNS.

    `index` is of the items' texts.
    """
    rng = np.random.default_rng(seed)
    ids, texts = items["item_id"].to_list(), items["text"].to_list()
    quotas = mix.quotas(count)
    reach = POOL * count if quotas[1] else count
    rows = []
    for (query_id, query, split), group in pairs.group_by("query_id", "query", "split", maintain_order=True):
        judged = set(group["text"])
        found = [place for place in index.top(str(query), reach + len(judged)) if texts[place] not in judged]
        places = [place for place in _mixed(found, quotas, len(texts), rng) if texts[place] not in judged]
        rows += [(query_id, query, ids[place], texts[place], split) for place in places]
    return _frame(rows)


def made_pairs(
    items: pl.DataFrame,
    index: Bm25,
    queries: int,
    count: int,
    mix: Mix,
    known: Collection[str],
    seed: int,
    among: pl.Series | None = None,
) -> pl.DataFrame:
    """Up to `queries` queries, each a run of words of one item's text, with up to `count` items each; COLUMNS.

    `index` is of the items' texts. Only items that are true in `among`, where it is given, make queries.

    Every source of items makes as many queries as the others, until it has no more items. A query's items are the one
    that it was made of, and others of which kinds `mix` says. Queries in `known`, among which are the held-out ones,
    are never made.
    """
    rng = np.random.default_rng(seed)
    ids, texts = items["item_id"].to_list(), items["text"].to_list()
    numbered = items.with_row_index("place")
    shuffled = (numbered.filter(among) if among is not None else numbered).sample(fraction=1.0, shuffle=True, seed=seed)
    in_turn = shuffled.with_columns(turn=pl.int_range(pl.len()).over("source")).sort("turn", maintain_order=True)
    made: set[str] = set(known)
    rows, quotas = [], mix.quotas(count - 1)
    for own in in_turn["place"]:
        if len(made) - len(known) == queries:
            break
        query = _run_of_words(texts[own], rng)
        if not query or query in made:
            continue
        made.add(query)
        places = dict.fromkeys([own, *_mixed(index.top(query, POOL * count), quotas, len(texts), rng)])
        rows += [(digest(query), query, ids[place], texts[place], "train") for place in places]
    return _frame(rows)


def _mixed(
    found: Sequence[int] | NDArray[np.int64], quotas: tuple[int, int, int], total: int, rng: np.random.Generator
) -> dict[int, None]:
    """Different places of items: of `found` the best and some further down, and any of `total`."""
    best, further, anything = quotas
    drawn = rng.permutation(found[best:])[:further]
    return dict.fromkeys(map(int, [*found[:best], *drawn, *rng.integers(total, size=anything)]))


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
