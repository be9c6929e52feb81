"""Timing of artifacts, by turns."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from builders import tiny_cross_encoder

from rankstill.errors import RunError
from rankstill.exporting import export_artifact
from rankstill.timing import Timing, choose_rankings, quietly, rank_by_turns, time_alone

PAIRS = pl.DataFrame({"query": ["red drill", "saw", "saw", "saw"], "text": ["a", "b", "c", "a"]})
RANKINGS = choose_rankings(PAIRS, 4)


def test_rankings_are_drawn_with_as_many_texts_as_wanted():
    assert {query for query, _ in RANKINGS} == {"red drill", "saw"}
    assert all(len(texts) == 4 and set(texts) <= {"a", "b", "c"} for _, texts in RANKINGS)
    assert choose_rankings(PAIRS, 4) == RANKINGS


def test_artifacts_rank_by_turns_a_part_each(monkeypatch):
    asked, clock = [], [0.0]
    monkeypatch.setattr("rankstill.timing.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def score(who, queries, texts):
        begins = asked[-1:] and asked[-1][0] != who
        clock[0] += 0.2 if begins else 0.1  # the threads of another one are not yet at rest
        asked.append((who, queries, texts))

    scores = [partial(score, who) for who in "ab"]
    taken = rank_by_turns(scores, Timing((("a", "onnx"), ("b", "onnx")), 1, (2,), RANKINGS, part=3, parts=5), 2)
    assert taken.shape == (2, 5, 3)
    assert taken == pytest.approx(np.full((2, 5, 3), 0.1)), "what a part begins with isn't timed"
    assert [who for who, *_ in asked] == [*"aaaabbbb"] * 5
    for place in range(4):
        assert asked[place][1:] == asked[4 + place][1:]
        assert [len(given) for given in asked[place][1:]] == [2, 2]


def test_a_timing_ends_once_it_took_its_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("rankstill.timing.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def score(queries, texts):
        clock[0] += 0.5

    timing = Timing((("a", "onnx"),), 1, (2,), RANKINGS, part=4, parts=9, seconds=5.0)
    assert rank_by_turns([score], timing, 2).shape == (1, 3, 4), "2 seconds a part"


def test_parts_beside_other_work_count_little():
    quiet = np.linspace(0.010, 0.020, 101)
    parts = np.array([quiet, 2 * quiet, quiet, 2 * quiet, 2 * quiet])
    assert quietly(parts, 50) == pytest.approx(0.015)
    assert quietly(parts, 99) == pytest.approx(0.0199)


def test_each_artifact_is_timed_in_its_runtime(tmp_path):
    for layers in (1, 2):
        (tmp_path / str(layers)).mkdir()
        export_artifact(tiny_cross_encoder(layers=layers), tmp_path / str(layers), {}, ["title"])
    artifacts = ((str(tmp_path / "1"), "onnx"), (str(tmp_path / "2"), "torch"))
    one, other = time_alone(tmp_path, Timing(artifacts, 1, (1, 4), RANKINGS, part=2))
    assert set(one["latency"]) == set(other["latency"]) == {"1", "4"}
    assert one["bytes"] == (tmp_path / "1" / "model.onnx").stat().st_size
    assert other["bytes"] == (tmp_path / "2" / "model.safetensors").stat().st_size
    assert one["pairs_per_second"] == pytest.approx(4000 / one["latency"]["4"]["p50_ms"], rel=0.01)


def test_what_can_not_be_timed_is_named(tmp_path):
    with pytest.raises(RunError, match=r"timing '.*gone' failed: .*; load it by hand"):
        time_alone(tmp_path, Timing(((str(tmp_path / "gone"), "onnx"),), 1, (1,), RANKINGS))
