"""A real refresh of a tiny student, on what simulated shoppers did."""

import json
from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace

import polars as pl
import pytest
from builders import tiny_cross_encoder

from jobs.pipeline import run_until
from jobs.refresh import Engine, main
from rankstill.configfile import load_config
from rankstill.errors import ConfigError, ModelError
from rankstill.event_log import EventLog
from rankstill.progress import Reporter
from rankstill.registry import Registry
from rankstill.simulation import SimulatedShop, logged

SETTINGS = ["data.shop=null", "data.fields=[title]", "name=shop", "labels.candidates=0", "train.epochs=1"]
SETTINGS += ["refresh.epochs=1", "refresh.candidates=2", "refresh.new_queries=12"]
SETTINGS += ["refresh.margin=1", "refresh.slice_margin=1", "refresh.slower=5", "refresh.calibration=1"]
SETTINGS += ["refresh.agreement_margin=1", "refresh.positions=4", "refresh.least_events=200"]


def visited(log: EventLog, shop: SimulatedShop, count: int, drifted: float, seed: int = 0) -> int:
    """Shoppers who get random rankings with neighbours in random order; how many clicks."""
    rng, impressions, events = Random(seed), [], []
    for number in range(count):
        visit = shop.visit(rng, drifted)
        impression, clicked = logged(
            rng, visit, range(len(visit.items)), "shop/1", f"r{seed}-{number}", datetime.now(UTC)
        )
        impressions.append(impression)
        events += clicked
    log.impressions.add(impressions)
    log.events.add(events)
    return len(events)


@pytest.fixture(scope="module")
def refreshed(cluster, tmp_path_factory):
    """A champion from judgements of before the drift, and a refresh from what was shown since."""
    folder = tmp_path_factory.mktemp("loop")
    shop = SimulatedShop(items=300, queries=90, candidates=6)
    tiny_cross_encoder(max_length=64).save(folder / "teacher")
    shop.judgements().write_ndjson(folder / "judgements.jsonl")
    given = [f"data.sources=[{{path: {folder / 'judgements.jsonl'}}}]", f"storage.root={folder / 'root'}", *SETTINGS]
    given.append(f"teacher.model={folder / 'teacher'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = load_config("jobs/configs/tiny.yaml", given)
        run_until(config)
        log = EventLog(config.storage.feedback_log)
        count = visited(log, shop, 900, drifted=0.5)
        with Reporter() as reporter:
            engine = Engine(config, reporter)
            with engine.loop.alone():
                engine.once(canary=False)
            yield SimpleNamespace(config=config, given=given, shop=shop, engine=engine, events=count, log=log)


def lists_of(one) -> tuple[dict, pl.DataFrame, pl.DataFrame]:
    """What the refresh's lists tell, its lists to learn from by item, and its held-out pairs."""
    (folder,) = {path.parent for path in (one.config.storage.folder / "lists").glob("*/fresh.json")}
    train = pl.read_parquet(folder / "train.parquet").explode("items").unnest("items")
    return json.loads((folder / "fresh.json").read_text()), train, pl.read_parquet(folder / "held.parquet")


def test_a_student_that_passes_becomes_challenger(refreshed):
    registry = Registry(refreshed.config.storage.folder)
    challenger, champion = (registry.resolve(f"shop@{one}", "test") for one in ("challenger", "champion"))
    assert (challenger.number, champion.number) == (2, 1)
    notes = registry.notes(challenger)
    assert (notes["gate"], notes["refreshed_from"]) == ("passed", "shop/1")
    state = refreshed.engine.loop.state
    assert (state.phase, [one.what for one in state.decisions]) == ("idle", ["refreshed"])
    assert state.learnt == (refreshed.log.impressions.last(), refreshed.log.events.last())
    names = [check["name"] for check in state.decisions[0].numbers["checks"]]
    assert {"judgements, ndcg@10", "teacher, fresh queries, pairwise_accuracy", "p50 ms"} <= set(names)


def test_clicks_are_learnt_beside_labels_and_what_was_before(refreshed):
    told, train, _ = lists_of(refreshed)
    assert told["clicks"] == refreshed.events
    assert told["examination"]["requests"] == told["impressions"]
    clicked = train.filter(pl.col("clicks") > 0)
    assert clicked["score"].null_count() == 0, "the teacher labels what was clicked"
    assert train.group_by("query_id").agg(pl.col("clicks").sum())["clicks"].max() < 1
    made = told["lists"]["shown"] + told["lists"]["new items"]
    assert 0 < told["lists"]["replayed"] <= made


def test_what_was_shown_and_judged_keeps_its_judgement(refreshed):
    _, train, _ = lists_of(refreshed)
    (pairs,) = (refreshed.config.storage.folder / "data").glob("*/pairs.parquet")
    judged = pl.read_parquet(pairs).select("query_id", "text", judgement="label").unique(["query_id", "text"])
    shown = train.filter(pl.col("clicks").is_not_null())
    known = shown.join(judged, on=["query_id", "text"])
    assert 0 < known.height < shown.height
    assert known["label"].equals(known["judgement"].cast(pl.Float32))
    assert shown["label"].count() == known.height


def test_held_out_queries_are_not_learnt(refreshed):
    _, train, held = lists_of(refreshed)
    assert held["query_id"].n_unique() > 5
    assert set(held["query_id"]).isdisjoint(train["query_id"])
    (pairs,) = (refreshed.config.storage.folder / "data").glob("*/pairs.parquet")
    out = pl.read_parquet(pairs).filter(pl.col("split") != "train")["query_id"]
    assert set(out).isdisjoint(train["query_id"])


def test_items_that_came_with_the_drift_get_queries_of_their_own(refreshed):
    told, _, _ = lists_of(refreshed)
    assert told["lists"]["new items"] == 12
    assert 0.2 < told["drift"]["unknown"]["queries"] < 0.8


def test_a_worse_student_is_registered_with_the_reasons_and_no_challenger(refreshed):
    """Of the pairs that it learns from, those that have labels keep them."""
    limits = {"slower": 1.0, "calibration": 0.0, "margin": 0.0, "least_events": 1}
    asked = refreshed.config.refresh.model_copy(update=limits)
    strict = refreshed.config.model_copy(update={"refresh": asked})
    visited(refreshed.log, refreshed.shop, 300, drifted=0.5, seed=1)
    registry, lists = Registry(strict.storage.folder), strict.storage.folder / "lists"
    challenger, before = registry.resolve("shop@challenger", "test"), set(lists.iterdir())
    told, _, _ = lists_of(refreshed)
    assert 0 < told["labelled anew"] < told["pairs"]
    with Reporter() as reporter:
        engine = Engine(strict, reporter)
        learnt = engine.loop.state.learnt
        with engine.loop.alone():
            engine.once(canary=True)
    (new,) = set(lists.iterdir()) - before
    again = json.loads((new / "fresh.json").read_text())
    assert again["labelled anew"] < 0.2 * again["pairs"]
    assert again["drift"]["stability"]["queries"] is not None
    assert engine.loop.state.learnt > learnt
    decision = engine.loop.state.decisions[-1]
    assert decision.what == "refused"
    assert registry.resolve("shop@challenger", "test").number == challenger.number
    notes = registry.notes(registry.resolve(decision.version, "test"))
    assert notes["gate"] == "refused"
    assert notes["reasons"] == decision.why


def test_too_little_feedback_is_told(refreshed, monkeypatch):
    given = [*refreshed.given, "refresh.least_events=100000"]
    monkeypatch.setattr("sys.argv", ["jobs.refresh", "--config", "jobs/configs/tiny.yaml", *given])
    with pytest.raises(ConfigError, match=r"0 new events; refresh\.least_events=100000 are wanted"):
        main()


@pytest.mark.parametrize("every", ["15", "m", "0m", "-1m"])
def test_a_time_that_is_none_is_told(monkeypatch, every):
    monkeypatch.setattr("sys.argv", ["jobs.refresh", "--config", "jobs/configs/tiny.yaml", f"--every={every}"])
    with pytest.raises(ConfigError, match="give a time such as 15m"):
        main()


def test_without_a_champion_there_is_nothing_to_refresh(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["jobs.refresh", "--config", "jobs/configs/tiny.yaml", f"storage.root={tmp_path}"])
    with pytest.raises(ModelError, match=r"run jobs\.pipeline first"):
        main()
