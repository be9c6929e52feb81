import math

import ir_measures
import numpy as np
import polars as pl
import pytest
from ir_measures.providers.pytrec_eval_provider import PytrecEvalProvider
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from rankstill.metrics import METRICS, estimate, ndcg, paired_difference, per_query, query_metrics, slices, summarise

SEEDS = range(12)


def judged(seed: int, queries: int = 15, distinct_scores: bool = True) -> tuple[pl.DataFrame, np.ndarray]:
    """Random judgements of several sizes, with scores that know something of the labels."""
    draw = np.random.default_rng(seed)
    rows = [
        {"query_id": f"q{query}", "item_id": f"q{query}i{item}", "label": float(draw.integers(0, 4))}
        for query in range(queries)
        for item in range(draw.integers(1, 30))
    ]
    pairs = pl.DataFrame(rows)
    scores = draw.normal(size=pairs.height) + 0.3 * pairs["label"].to_numpy()
    return pairs, scores if distinct_scores else np.round(scores)


def one_query(labels: list[float]) -> pl.DataFrame:
    return pl.DataFrame(
        {"query_id": ["q"] * len(labels), "item_id": [f"i{place}" for place in range(len(labels))], "label": labels}
    )


def trec(pairs: pl.DataFrame, scores: np.ndarray, measure, gains: bool = False) -> dict[str, float]:
    """The measure of each query according to pytrec_eval; it takes whole gains, so labels here are whole too."""
    qrels: dict = {}
    run: dict = {}
    for (query, item, label), score in zip(pairs.rows(), scores, strict=True):
        qrels.setdefault(query, {})[item] = int(2**label - 1 if gains else label)
        run.setdefault(query, {})[item] = float(score)
    found = PytrecEvalProvider().iter_calc([measure], qrels, run)
    return {metric.query_id: metric.value for metric in found}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "measure", "gains"),
    [
        ("ndcg@10", ir_measures.nDCG @ 10, True),
        ("mrr@10", ir_measures.RR @ 10, False),
        ("map", ir_measures.AP, False),
    ],
)
def test_ranking_metrics_agree_with_pytrec_eval(seed, name, measure, gains):
    pairs, scores = judged(seed)
    expected = trec(pairs, scores, measure, gains)
    found = per_query(pairs, scores).select("query_id", name).drop_nulls().rows()
    assert len(found) > 8
    assert dict(found) == pytest.approx({query: expected[query] for query, _ in found}, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("distinct_scores", [True, False])
def test_auc_and_spearman_agree_with_scikit_learn_and_scipy(seed, distinct_scores):
    pairs, scores = judged(seed, distinct_scores=distinct_scores)
    found = {row["query_id"]: row for row in per_query(pairs, scores).to_dicts()}
    scored = pairs.with_columns(score=pl.Series(scores))
    compared = 0
    for (query,), group in scored.group_by("query_id"):
        labels, values = group["label"].to_numpy(), group["score"].to_numpy()
        if found[query]["auc"] is not None:
            assert found[query]["auc"] == pytest.approx(roc_auc_score(labels >= 1, values))
            compared += 1
        if found[query]["spearman"] is not None and len(set(values)) > 1:
            assert found[query]["spearman"] == pytest.approx(spearmanr(labels, values).statistic)
            compared += 1
    assert compared > 16


@pytest.mark.parametrize("seed", SEEDS)
def test_pairwise_accuracy_counts_pairs(seed):
    pairs, scores = judged(seed, queries=3, distinct_scores=seed % 2 == 0)
    found = dict(per_query(pairs, scores).select("query_id", "pairwise_accuracy").rows())
    rows = [(query, label, score) for (query, _, label), score in zip(pairs.rows(), scores, strict=True)]
    for query, value in found.items():
        mine = [(label, score) for q, label, score in rows if q == query]
        better = [(s, t) for y, s in mine for z, t in mine if y > z]
        right = sum(1.0 if s > t else 0.5 if s == t else 0.0 for s, t in better)
        assert value == (pytest.approx(right / len(better)) if better else None)


def test_metrics_of_one_query_by_hand():
    # ranked: 0, 3, 1, 2; gains 0, 7, 1, 3; ideal 7, 3, 1, 0
    found = query_metrics(np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.8, 0.1, 0.5, 0.9]))
    gained = 7 / math.log2(3) + 1 / math.log2(4) + 3 / math.log2(5)
    ideal = 7 / math.log2(2) + 3 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@10"] == pytest.approx(gained / ideal)
    assert found["mrr@10"] == pytest.approx(1 / 2)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert found["auc"] == pytest.approx(0 / 3)
    assert found["pairwise_accuracy"] == pytest.approx(2 / 6)
    # the ranks differ by 1, 2, 0 and 3
    assert found["spearman"] == pytest.approx(1 - 6 * (1 + 4 + 0 + 9) / (4 * (16 - 1)))


def test_ndcg_looks_at_the_first_k_only():
    assert ndcg(np.array([0.0] * 10 + [3.0]), 10) == 0.0
    assert ndcg(np.array([3.0] + [0.0] * 30), 10) == 1.0
    assert ndcg(np.array([0.0, 1.0]), 1) == 0.0
    assert ndcg(np.array([0.5, 0.0]), 10) == 1.0


def test_reciprocal_rank_looks_at_the_first_ten_and_average_precision_at_all():
    scores = -np.arange(11.0)
    found = query_metrics(np.array([0.0] * 10 + [1.0]), scores)
    assert found["mrr@10"] == 0.0
    assert found["map"] == pytest.approx(1 / 11)
    assert query_metrics(np.array([0.0] * 9 + [1.0]), scores[:10])["mrr@10"] == pytest.approx(1 / 10)


def test_binary_metrics_count_labels_of_one_or_more_as_relevant():
    found = query_metrics(np.array([0.99, 1.0]), np.array([2.0, 1.0]))
    assert (found["mrr@10"], found["map"], found["auc"]) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [
        ([0.0, 0.0], set(METRICS)),
        ([2.0, 2.0, 2.0], {"ndcg@10", "auc", "pairwise_accuracy", "spearman"}),
        ([1.0], {"ndcg@10", "auc", "pairwise_accuracy", "spearman"}),
        ([0.0, 0.5], {"mrr@10", "map", "auc"}),
        ([1.0, 3.0], {"auc"}),
        ([0.0, 1.0], set()),
    ],
)
def test_what_a_query_leaves_undefined_is_null(labels, undefined):
    (row,) = per_query(one_query(labels), np.arange(float(len(labels)))).to_dicts()
    assert {name for name in METRICS if row[name] is None} == undefined
    assert all(math.isfinite(row[name]) for name in METRICS if name not in undefined)


def test_queries_keep_the_order_of_their_first_appearance():
    pairs = pl.DataFrame(
        {"query_id": ["z", "a", "z", "m"], "item_id": ["1", "2", "3", "4"], "label": [0.0, 1.0, 1.0, 0.0]}
    )
    table = per_query(pairs, np.array([1.0, 0.0, 2.0, 0.0]))
    assert table["query_id"].to_list() == ["z", "a", "m"]
    assert table["ndcg@10"].to_list() == [1.0, None, None]
    assert table.columns == ["query_id", *METRICS]


@pytest.mark.parametrize("seed", range(5))
def test_equal_scores_do_not_profit_from_the_order_of_input(seed):
    pairs, scores = judged(seed, distinct_scores=False)
    order = np.random.default_rng(seed).permutation(pairs.height)
    expected = per_query(pairs, scores).sort("query_id")
    assert per_query(pairs[order], scores[order]).sort("query_id").equals(expected)


def test_a_constant_score_gains_nothing_from_a_file_sorted_by_label():
    pairs, _ = judged(0, queries=400)
    constant = np.zeros(pairs.height)
    best_first = per_query(pairs.sort("query_id", "label", descending=[False, True]), constant)
    worst_first = per_query(pairs.sort("query_id", "label"), constant)
    assert best_first.sort("query_id").equals(worst_first.sort("query_id"))
    summary = summarise(best_first)
    assert summary["pairwise_accuracy"].value == summary["auc"].value == 0.5
    assert summary["spearman"].value == 0.0
    chance = summarise(per_query(pairs, np.random.default_rng(0).random(pairs.height)))["ndcg@10"]
    assert summary["ndcg@10"].value == pytest.approx(chance.value, abs=0.04)


def test_metrics_take_scores_and_labels_of_single_precision():
    pairs, scores = judged(1)
    single = pairs.with_columns(pl.col("label").cast(pl.Float32))
    assert per_query(single, scores.astype(np.float32)).equals(
        per_query(pairs, scores.astype(np.float32).astype(float))
    )


def test_no_pairs_give_no_queries():
    table = per_query(
        one_query([]).cast({"query_id": pl.String, "item_id": pl.String, "label": pl.Float64}), np.empty(0)
    )
    assert table.height == 0
    assert summarise(table)["ndcg@10"].as_dict() == {"value": None, "low": None, "high": None}


def test_an_interval_is_decided_by_its_seed():
    values = np.random.default_rng(0).random(50).tolist()
    assert estimate(values, seed=1) == estimate(values, seed=1)
    assert estimate(values, seed=1) != estimate(values, seed=2)
    assert estimate(values, seed=1).value == estimate(values, seed=2).value == pytest.approx(np.mean(values))


def test_an_interval_holds_the_mean_and_shrinks_with_more_queries():
    draw = np.random.default_rng(3)
    widths = []
    for count in (20, 200, 2000):
        values = draw.random(count)
        found = estimate(values.tolist())
        assert found.low < found.value < found.high
        expected = 2 * 1.96 * values.std() / math.sqrt(count)
        assert found.high - found.low == pytest.approx(expected, rel=0.25)
        widths.append(found.high - found.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(4)
    hits = 0
    for seed in range(60):
        found = estimate(draw.random(60).tolist(), seed)
        hits += found.low <= 0.5 <= found.high
    assert 50 <= hits <= 60


def test_an_interval_leaves_undefined_queries_out():
    assert estimate([None, 0.25, None, 0.75]).value == 0.5
    nothing = estimate([None, None])
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert nothing.as_dict() == {"value": None, "low": None, "high": None}
    only = estimate([0.4])
    assert (only.low, only.high) == (0.4, 0.4)


def table_of(values: dict[str, float | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"query_id": list(values), "ndcg@10": list(values.values())}, schema_overrides={"ndcg@10": pl.Float64}
    )


def test_a_paired_difference_is_over_the_queries_of_both():
    left = table_of({"a": 0.9, "b": 0.5, "c": None, "d": 0.1})
    right = table_of({"d": 0.4, "b": 0.3, "c": 0.2, "a": 0.8, "e": 0.0})
    found = paired_difference(left, right, "ndcg@10")
    assert found.value == pytest.approx((0.1 + 0.2 - 0.3) / 3)
    assert paired_difference(left, left, "ndcg@10").as_dict() == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_paired_interval_is_narrower_than_that_of_the_metric():
    draw = np.random.default_rng(5)
    base = draw.random(300)
    left = table_of({f"q{number}": value for number, value in enumerate(base)})
    right = table_of({f"q{number}": value for number, value in enumerate(base - 0.01 + 0.02 * draw.random(300))})
    difference, metric = paired_difference(left, right, "ndcg@10"), estimate(base.tolist())
    assert difference.high - difference.low < (metric.high - metric.low) / 10


def sliced(rows: list[tuple[str, str, str, int | None]]) -> dict[str, list[str]]:
    columns = {"query_id": pl.String, "query": pl.String, "source": pl.String, "frequency": pl.Int64}
    return {name: ids.to_list() for name, ids in slices(pl.DataFrame(rows, columns, orient="row")).items()}


def test_slices_by_length_source_and_frequency():
    rows = [(f"q{n}", "one two" if n < 4 else "one two three", "x" if n % 2 else "y", 100 - n) for n in range(10)]
    found = sliced(rows + rows[:3])
    assert sorted(found["short query"]) == ["q0", "q1", "q2", "q3"]
    assert sorted(found["long query"]) == [f"q{n}" for n in range(4, 10)]
    assert sorted(found["source x"]) == [f"q{n}" for n in (1, 3, 5, 7, 9)]
    assert sorted(found["source y"]) == [f"q{n}" for n in (0, 2, 4, 6, 8)]
    assert sorted(found["head query"]) == ["q0", "q1"]
    assert sorted(found["tail query"]) == [f"q{n}" for n in range(2, 10)]


def test_slices_that_say_nothing_are_left_out():
    found = sliced([("a", "drill", "x", None), ("b", "lamp", "x", 3)])
    assert found == {"short query": ["a", "b"]}
