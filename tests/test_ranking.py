import random

import numpy as np

from rankstill.served import Version
from serve.messages import Scores
from serve.ranking import SWAPPED_DEPTH, rank

VERSION = Version(version="shop/1", fields=("title",))


def scores(*relevance: float) -> Scores:
    values = np.array(relevance)
    return Scores(np.log(values / (1 - values)).astype(np.float32), values, tokens=1, truncated=0)


def test_best_first_and_no_more_than_wanted():
    found = rank(VERSION, scores(0.2, 0.9, 0.5), 2, 0.0, random.Random(0))
    assert (found.order, found.swap) == ([1, 2], None)


def test_equals_keep_their_order():
    assert rank(VERSION, scores(0.5, 0.5, 0.7, 0.5), None, 0.0, random.Random(0)).order == [2, 0, 1, 3]


def test_neighbours_change_places_half_of_the_time_and_scores_with_them():
    relevance, draw = (0.9, 0.8, 0.7, 0.6), random.Random(0)
    seen = {upper: [0, 0] for upper in range(3)}
    for _ in range(6000):
        found = rank(VERSION, scores(*relevance), None, 1.0, draw)
        assert found.swap is not None
        turned = found.order != [0, 1, 2, 3]
        seen[found.swap][turned] += 1
        if turned:
            changed = [0, 1, 2, 3]
            changed[found.swap], changed[found.swap + 1] = found.swap + 1, found.swap
            assert found.order == changed
        shown = found.scores.relevance_N[found.order]
        assert shown.tolist() == list(relevance)  # in order, whoever stands there
        assert np.argsort(-found.scores.logits_N).tolist() == found.order
    for kept, turned in seen.values():
        assert 900 < kept < 1100
        assert 900 < turned < 1100


def test_only_a_share_of_the_answers_and_only_the_first_positions():
    draw, many = random.Random(1), scores(*np.linspace(0.9, 0.1, 30))
    found = [rank(VERSION, many, None, 0.25, draw).swap for _ in range(4000)]
    drawn = [one for one in found if one is not None]
    assert 0.22 < len(drawn) / len(found) < 0.28
    assert set(drawn) == set(range(SWAPPED_DEPTH - 1))


def test_what_is_not_shown_takes_no_place_and_one_item_has_no_neighbour():
    draw = random.Random(2)
    many = scores(0.9, 0.8, 0.7)
    assert {tuple(sorted(rank(VERSION, many, 2, 1.0, draw).order)) for _ in range(50)} == {(0, 1)}
    assert rank(VERSION, many, 1, 1.0, draw).swap is None


def test_scores_of_others_stay_as_they_were():
    given = scores(0.9, 0.8)
    for _ in range(20):
        rank(VERSION, given, None, 1.0, random.Random())
    assert given.relevance_N.tolist() == [0.9, 0.8]
