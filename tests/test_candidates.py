from collections.abc import Sequence

import polars as pl
import pytest
from pydantic import ValidationError

from rankstill import candidates
from rankstill.bm25 import Bm25
from rankstill.candidates import COLUMNS
from rankstill.config import Labels, Mix
from rankstill.text import digest

TEXTS = ("red drill red", "blue drill case bag", "lamp")


def judged(*rows: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(
        [{"query_id": f"id-{query}", "query": query, "text": text, "split": "train"} for query, text in rows]
    )


ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "text": [*TEXTS, "drill"], "source": "shop"})


def unlabelled_pairs(pairs: pl.DataFrame, items: pl.DataFrame, count: int, **shares: float) -> pl.DataFrame:
    index = Bm25(items["text"].to_list())
    return candidates.unlabelled_pairs(pairs, items, index, count, Mix(**shares), seed=0)


def made_pairs(items: pl.DataFrame, queries: int, count: int, known: Sequence[str] = (), seed: int = 0) -> pl.DataFrame:
    index, mix = Bm25(items["text"].to_list()), Labels().made_mix
    return candidates.made_pairs(items, index, queries, count, mix, known, seed)


def test_candidates_are_unjudged_items_best_first():
    found = unlabelled_pairs(judged(("red drill", TEXTS[0]), ("lamp", TEXTS[0])), ITEMS, 5)
    assert found.rows() == [
        ("id-red drill", "red drill", "d", "drill", "train"),
        ("id-red drill", "red drill", "b", TEXTS[1], "train"),
        ("id-lamp", "lamp", "c", "lamp", "train"),
    ]
    assert found.columns == ["query_id", "query", "item_id", "text", "split"]


def test_candidates_are_as_many_as_asked_even_where_the_best_are_judged():
    pairs = judged(("drill", "drill"), ("drill", TEXTS[0]))
    assert unlabelled_pairs(pairs, ITEMS, 1)["item_id"].to_list() == ["b"]


def test_no_candidates_leave_a_table_of_the_same_columns():
    found = unlabelled_pairs(judged(("sofa", TEXTS[0])), ITEMS, 3)
    assert found.height == 0
    assert found.schema == dict.fromkeys(COLUMNS, pl.String)
    assert unlabelled_pairs(judged(("drill", TEXTS[0])), ITEMS, 0).height == 0


def test_candidates_are_mixed_as_configured():
    items = shops()
    ranked = Bm25(items["text"].to_list()).top("red drill", 100).tolist()
    best = [items["item_id"][place] for place in ranked]
    pairs = judged(("red drill", items["text"][ranked[0]]))
    found = unlabelled_pairs(pairs, items, 8, best=0.5, further=0.25, random=0.25)["item_id"].to_list()
    assert found[:4] == best[1:5], "the very best is judged"
    assert len(set(found) & set(best[5:34])) >= 2
    assert len(set(found)) == len(found) <= 8
    assert best[0] not in found
    anything = unlabelled_pairs(pairs, items, 60, best=0, random=1)["item_id"].to_list()
    assert len(set(anything) - set(best)) > 5
    assert len(unlabelled_pairs(pairs, items, 9, best=0, further=1)) == 9


def test_quotas_are_in_proportion_and_nothing_comes_of_no_share():
    assert Mix(best=1, further=1, random=1).quotas(8) == (3, 3, 2)
    assert Mix(best=0, further=1, random=2).quotas(4) == (0, 1, 3)
    assert Mix(best=0, further=1, random=1).quotas(3) == (0, 2, 1)
    assert Mix(best=5, further=4, random=2).quotas(11) == (5, 4, 2)
    assert Mix().quotas(3) == (3, 0, 0)
    with pytest.raises(ValidationError, match="all 0; give one of them a share"):
        Mix(best=0)


def shops() -> pl.DataFrame:
    """A large source and a small one."""
    kinds, colours = ("drill", "lamp", "chair", "mug"), ("red", "blue", "white", "black", "green")
    texts = [f"Torkem {kind} number{size} {colour}" for kind in kinds for colour in colours for size in range(10)]
    return pl.DataFrame(
        {
            "item_id": [f"i{place}" for place in range(len(texts))],
            "text": texts,
            "source": ["large" if place >= 20 else "small" for place in range(len(texts))],
        }
    )


def test_made_queries_are_neighbouring_words_of_the_item_that_comes_first():
    made = made_pairs(shops(), 30, 8)
    assert made.columns == list(COLUMNS)
    assert set(made["split"]) == {"train"}
    firsts = made.group_by("query", maintain_order=True).first()
    assert firsts.height == 30
    assert all(f" {query} " in f" {text.lower()} " for query, text in firsts.select("query", "text").rows())
    assert all(query_id == digest(query) for query_id, query in firsts.select("query_id", "query").rows())
    assert firsts["query"].str.split(" ").list.len().n_unique() >= 3


def test_made_queries_get_different_items_of_all_kinds():
    made = made_pairs(shops(), 30, 12)
    assert made.select("query", "item_id").is_duplicated().sum() == 0
    assert made.group_by("query").len()["len"].max() == 12
    strangers = [
        not set(query.split()) & set(text.lower().split()) for query, text in made.select("query", "text").rows()
    ]
    assert 0.05 < sum(strangers) / made.height < 0.25, "one item in six is any"


def test_every_source_makes_as_many_queries():
    items = shops()
    made = made_pairs(items, 30, 2).group_by("query", maintain_order=True).first()
    counts = made.join(items, on="item_id")["source"].value_counts()
    assert dict(counts.rows()) == {"small": 15, "large": 15}


def test_known_queries_are_not_made_again():
    made = made_pairs(shops(), 20, 2)["query"].unique().to_list()
    again = made_pairs(shops(), 20, 2, known=made)["query"].unique()
    assert not set(again) & set(made)


def test_the_seed_decides_and_too_few_items_give_what_they_can():
    items = shops()
    assert made_pairs(items, 9, 4, seed=1).equals(made_pairs(items, 9, 4, seed=1))
    assert not made_pairs(items, 9, 4, seed=1).equals(made_pairs(items, 9, 4, seed=2))
    assert 0 < made_pairs(items, 10**6, 4)["query"].n_unique() <= items.height
    assert made_pairs(items, 0, 4).height == 0


def test_texts_that_tell_nothing_make_no_query():
    items = pl.DataFrame({"item_id": ["a", "b"], "text": ["-- !", "12 x 4 350"], "source": "shop"})
    assert made_pairs(items, 5, 4).height == 0
