from math import log

import numpy as np
import polars as pl
import pytest

from rankstill.bm25 import Bm25, score_pairs

TEXTS = ["red drill red", "blue drill case bag", "lamp"]
K1, B, MEAN_LENGTH = 1.5, 0.75, (3 + 4 + 1) / 3


def rarity(containing: int, texts: int = 3) -> float:
    """Lucene's inverse document frequency."""
    return log(1 + (texts - containing + 0.5) / (containing + 0.5))


def saturation(count: int, length: int) -> float:
    """How much `count` occurrences of a word in a text of `length` words tell; Lucene leaves out the factor k1 + 1."""
    return count / (count + K1 * (1 - B + B * length / MEAN_LENGTH))


def test_scores_follow_lucenes_formula():
    index = Bm25(TEXTS)
    red = [rarity(1) * saturation(2, 3), 0.0, 0.0]
    drill = [rarity(2) * saturation(1, 3), rarity(2) * saturation(1, 4), 0.0]
    assert index.scores("red").tolist() == pytest.approx(red, rel=1e-5)
    assert index.scores("drill").tolist() == pytest.approx(drill, rel=1e-5)
    both = [a + b for a, b in zip(red, drill, strict=True)]
    assert index.scores("Red, DRILL!").tolist() == pytest.approx(both, rel=1e-5)
    assert index.scores("lamp").tolist() == pytest.approx([0, 0, rarity(1) * saturation(1, 1)], rel=1e-5)


def test_unknown_words_count_nothing():
    index = Bm25(TEXTS)
    assert index.scores("sofa bed").tolist() == [0.0, 0.0, 0.0]
    assert index.scores("").tolist() == [0.0, 0.0, 0.0]
    assert index.scores("red sofa").tolist() == index.scores("red").tolist()


def test_the_top_shares_a_word_with_the_query_and_comes_best_first():
    index = Bm25(TEXTS)
    assert index.top("drill red", 3).tolist() == [0, 1]
    assert index.top("drill red", 1).tolist() == [0]
    assert index.top("drill bag", 50).tolist() == [1, 0]
    assert index.top("sofa", 3).tolist() == []


def test_pairs_are_scored_in_their_places():
    pairs = pl.DataFrame({"query": ["drill", "red", "drill", "red"], "text": [TEXTS[1], TEXTS[0], TEXTS[0], TEXTS[2]]})
    index = Bm25([TEXTS[1], TEXTS[0], TEXTS[2]])
    expected = [
        index.scores("drill")[0],
        index.scores("red")[1],
        index.scores("drill")[1],
        0.0,
    ]
    np.testing.assert_allclose(score_pairs(pairs), expected)


def test_texts_without_words_are_no_obstacle():
    index = Bm25(["", "---", "drill"])
    assert index.scores("drill")[:2].tolist() == [0.0, 0.0]
    assert index.scores("drill")[2] > 0
