import math

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from builders import tiny_cross_encoder, tokens_of_lengths

from rankstill.batches import TokenisedLists, collate_lists, plan_epoch, read_lists
from rankstill.data import build_lists
from rankstill.errors import ConfigError
from rankstill.model_config import Train

NAN = float("nan")


def lists_of(sizes: list[int], lengths: list[int] | None = None) -> TokenisedLists:
    """Lists of the given numbers of pairs; pair p has the label p and the teacher score -p."""
    count = sum(sizes)
    ends = np.cumsum(sizes)
    return TokenisedLists(
        tokens=tokens_of_lengths(lengths or [3 + number % 7 for number in range(count)]),
        rows=[np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)],
        pairs=pl.DataFrame(),
        labels_P=np.arange(count, dtype=np.float32),
        scores_P=-np.arange(count, dtype=np.float32),
        logits_PC=np.zeros((count, 0), dtype=np.float32),
        clicks_P=np.where(np.arange(count) % 2, np.nan, np.arange(count) / count).astype(np.float32),
    )


def as_plain(plan) -> list[list[list[int]]]:
    return [[part.tolist() for part in step] for step in plan]


def rows_of(plan) -> list[int]:
    return [row for step in plan for part in step for row in part.tolist()]


def test_an_epoch_covers_every_list_once_where_the_steps_come_out_even():
    lists = lists_of([4] * 24)
    plan = plan_epoch(lists, Train(lists=8, list_size=12), epoch=0, workers=1)
    assert [len(step) for step in plan] == [8, 8, 8]
    parts = sorted(sorted(part.tolist()) for step in plan for part in step)
    assert parts == [rows.tolist() for rows in lists.rows]


def test_no_pair_comes_twice_and_less_than_a_step_is_left_over():
    lists = lists_of([1 + number % 9 for number in range(101)])
    plan = plan_epoch(lists, Train(lists=8, list_size=12), 0, 1)
    rows = rows_of(plan)
    assert len(rows) == len(set(rows))
    assert len(plan) == 101 // 8


def test_what_is_left_over_is_another_in_each_epoch():
    # lists of very different lengths: sorting them must not decide which are left over
    lengths = [2 + 3 * number for number in range(11)]
    lists = lists_of([1] * 11, lengths)
    seen = {row for epoch in range(30) for row in rows_of(plan_epoch(lists, Train(lists=4), epoch, 1))}
    assert seen == set(range(11))


def test_plans_follow_the_seed_and_the_epoch():
    lists = lists_of([5] * 40)
    plans = [
        as_plain(plan_epoch(lists, Train(lists=8, seed=seed), epoch, 1))
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 2), (4, 2)])
def test_steps_split_evenly_over_workers_and_micro_batches(workers, accumulate):
    plan = plan_epoch(lists_of([3] * 50), Train(lists=9, accumulate=accumulate), 0, workers)
    sizes = {len(step) for step in plan}
    assert len(sizes) == 1
    (size,) = sizes
    assert size % (workers * accumulate) == 0
    assert size == 9 // (workers * accumulate) * workers * accumulate


def test_long_lists_are_cut_into_parts_of_like_size_anew_in_each_epoch():
    lists = lists_of([25, 12, 13])
    train = Train(lists=1, list_size=12)
    first, second = (plan_epoch(lists, train, epoch, 1) for epoch in (0, 1))
    for plan in (first, second):
        assert sorted(rows_of(plan)) == list(range(50)), "nothing is lost by cutting"
        assert sorted(len(part) for step in plan for part in step) == [6, 7, 8, 8, 9, 12]
        for step in plan:
            for part in step:
                assert len({sum(row >= start for start in (25, 37)) for row in part.tolist()}) == 1, "one query a part"
    assert {frozenset(part.tolist()) for step in first for part in step} != {
        frozenset(part.tolist()) for step in second for part in step
    }


def test_lists_of_like_length_share_a_step():
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 100, 512).tolist()
    plan = plan_epoch(lists_of([1] * 512, lengths), Train(lists=8), 0, 1)
    padded = sum(len(step) * max(lengths[part[0]] for part in step) for step in plan)
    assert padded < 1.1 * sum(lengths)
    means = [np.mean([lengths[part[0]] for part in step]) for step in plan]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5, "short and long steps are mixed"


def test_fewer_lists_than_a_step_make_one_smaller_step():
    plan = plan_epoch(lists_of([3] * 5), Train(lists=8), 0, 2)
    assert [len(step) for step in plan] == [4]


def test_too_few_lists_are_named():
    with pytest.raises(ConfigError, match=r"train\.lists is 8, with 3 candidate lists for 2 workers x accumulate 2"):
        plan_epoch(lists_of([3] * 3), Train(lists=8, accumulate=2), 0, 2)
    with pytest.raises(ConfigError, match=r"train\.lists is 2"):
        plan_epoch(lists_of([3] * 30), Train(lists=2), 0, 4)


def test_a_batch_has_everything_in_its_place():
    lists = lists_of([2, 3, 1])
    lists.labels_P[3] = lists.scores_P[4] = NAN
    batch = collate_lists(lists, [np.array([4, 2, 3]), np.array([5]), np.array([1, 0])], group=2)
    assert batch.mask_QN.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    expected = np.array([[4, 2, NAN], [5, NAN, NAN], [1, 0, NAN]])
    np.testing.assert_array_equal(batch.labels_QN.numpy(), expected)
    np.testing.assert_array_equal(batch.teacher_QN.numpy(), np.array([[NAN, -2, -3], [-5, NAN, NAN], [-1, 0, NAN]]))
    clicks = np.array([[4 / 6, 2 / 6, NAN], [NAN, NAN, NAN], [NAN, 0, NAN]], dtype=np.float32)
    np.testing.assert_array_equal(batch.clicks_QN.numpy(), clicks)
    assert batch.rows_P.tolist() == [4, 2, 3, 5, 1, 0]
    lengths = lists.tokens.lengths_B[batch.rows_P]
    assert [len(places) for places in batch.groups] == [2, 2, 2]
    assert sorted(lengths) == [lengths[place] for places in batch.groups for place in places]


@pytest.mark.parametrize("group", [1, 4, 100])
def test_logits_of_groups_are_arranged_as_their_pairs_were(group):
    lists = lists_of([2, 3, 1])
    batch = collate_lists(lists, [np.array([4, 2, 3]), np.array([5]), np.array([1, 0])], group)
    numbers = [torch.from_numpy(batch.rows_P[places]).float() for places in batch.groups]
    logits = [torch.stack([number_P, 1 - number_P], dim=1).requires_grad_() for number_P in numbers]
    logits_QNC = batch.arrange(logits)
    labels = batch.labels_QN[batch.mask_QN]
    assert torch.equal(logits_QNC[batch.mask_QN], torch.stack([labels, 1 - labels], dim=1)), "its number is its label"
    assert logits_QNC[~batch.mask_QN].abs().sum() == 0
    logits_QNC.square().sum().backward()
    for logits_PC in logits:
        assert torch.equal(logits_PC.grad, 2 * logits_PC)


def test_lists_are_read_as_they_were_built(tmp_path):
    pairs = pl.DataFrame(
        {
            "pair_id": ["1", "2", "3"],
            "query_id": ["b", "a", "b"],
            "query": ["drill", "lamp", "drill"],
            "item_id": ["x", "y", "z"],
            "text": ["red drill", "steel lamp small", "oak"],
            "label": [3.0, None, 0.0],
        }
    )
    labels = pl.DataFrame({"pair_id": ["3", "2"], "score": [0.5, -1.5], "logits": [[0.0, 1.0, 2.0], None]})
    pq.write_table(build_lists(pairs, labels), tmp_path / "lists.parquet")
    encoder = tiny_cross_encoder(layers=1)
    lists = read_lists(tmp_path / "lists.parquet", encoder)
    assert lists.pairs["item_id"].to_list() == ["x", "z", "y"]
    assert [rows.tolist() for rows in lists.rows] == [[0, 1], [2]]
    np.testing.assert_array_equal(lists.labels_P, np.array([3.0, 0.0, NAN], dtype=np.float32))
    np.testing.assert_array_equal(lists.scores_P, np.array([NAN, 0.5, -1.5], dtype=np.float32))
    np.testing.assert_array_equal(lists.logits_PC, np.array([[NAN] * 3, [0, 1, 2], [NAN] * 3], dtype=np.float32))
    assert encoder.tokenizer.decode(lists.tokens.input_ids[1]) == "[CLS] drill [SEP] oak [SEP]"
    assert math.isnan(lists.labels_P[2])


@pytest.mark.parametrize("epoch_steps", [1, 3, 4])
def test_short_epochs_make_up_a_pass_in_which_no_pair_comes_twice(epoch_steps):
    lists, settings = lists_of([4] * 96), Train(lists=8, epoch_steps=epoch_steps)
    epochs = [plan_epoch(lists, settings, epoch, 1) for epoch in range(2 * 12 // epoch_steps)]
    assert {len(plan) for plan in epochs} == {epoch_steps}
    first, second = ([row for plan in part for row in rows_of(plan)] for part in np.split(np.array(epochs, object), 2))
    assert sorted(first) == sorted(second) == list(range(4 * 96))
    assert first != second


def test_an_epoch_is_a_pass_at_most():
    lists = lists_of([4] * 24)
    assert as_plain(plan_epoch(lists, Train(lists=8, epoch_steps=99), 1, 1)) == as_plain(
        plan_epoch(lists, Train(lists=8), 1, 1)
    )
