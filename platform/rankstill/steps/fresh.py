"""What shoppers did, as candidate lists: what they were shown, debiased clicks, and the teacher's labels."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from rankstill.bm25 import Bm25
from rankstill.candidates import made_pairs, unlabelled_pairs
from rankstill.config import Config
from rankstill.data import build_lists, draw_split, with_pair_id
from rankstill.drift import drift_since, unknown
from rankstill.errors import DataError
from rankstill.event_log import EventLog
from rankstill.feedback import Examination, click_targets, examination
from rankstill.steps.label import Labelled, labels_of, open_labellers, write_stores
from rankstill.steps.labelling import Labeller
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught
from rankstill.storage import write_json
from rankstill.text import digest, normalise_column

PAIR = ("query_id", "query", "item_id", "text")


@dataclass(frozen=True)
class Upto:
    """How far feedback counts: the last groups of both tables; `before`, that of impressions at the last refresh."""

    impressions: int
    events: int
    before: int = -1
    at: str = ""
    """When this was noted (ISO 8601), from which days count back."""


@dataclass(frozen=True)
class Fresh:
    """Candidate lists of what was shown, and of what was there before."""

    lists: Labelled
    folder: Path

    @property
    def held(self) -> pl.DataFrame:
        """Pairs of held-out queries that were shown: PAIR's columns, clicks, and the teacher's score."""
        return pl.read_parquet(self.folder / "held.parquet")


def now_upto(log: EventLog, before: int = -1) -> Upto:
    """Everything that is there now."""
    return Upto(log.impressions.last(), log.events.last(), before, datetime.now(UTC).isoformat())


def shown_upto(log: EventLog, upto: Upto, days: int) -> pl.DataFrame:
    """What was shown in the last days, of queries that were kept, and what was done with it."""
    since = (datetime.fromisoformat(upto.at) - timedelta(days=days)).astimezone(UTC)
    shown = log.shown(upto=(upto.impressions, upto.events)).filter(pl.col("at") >= since)
    return shown.filter((pl.col("query") != "") & ~pl.col("query").str.starts_with("query-"))


def fresh_lists(run: Run, prepared: Prepared, taught: Taught, old: Labelled, upto: Upto) -> Fresh:
    """Lists to learn from: shown, new items', and some of the old ones; `fresh.json` beside them tells what there was.

    Raises:
        DataError: nothing that was shown can be learnt from.
    """
    config = run.config
    labellers = open_labellers(run, prepared, taught)
    names = [one.store.fingerprint for one in labellers]
    wanted = config.refresh.model_dump(mode="json", exclude={"canary"})
    key = step_key(old.key, taught.key, names, upto.impressions, upto.events, wanted, config.labels.seed)

    def build(folder: Path) -> None:
        shown = shown_upto(EventLog(config.storage.feedback_log), upto, config.refresh.days)
        train, held, told = fresh_pairs(config, prepared, shown)
        further = new_pairs(config, prepared, train)
        every = pl.concat([train, held, *further], how="diagonal")
        asked = every.select("pair_id").unique()
        missing = max(_missing(one, asked) for one in labellers)
        labels = labels_of(run, taught, labellers, every, key)
        lists = flat(build_lists(pl.concat([train, *further], how="diagonal"), labels))
        own = lists["query_id"].n_unique()
        replayed = some_lists(flat(pq.read_table(old.train)), own, config)
        both = pl.concat([lists, replayed], how="diagonal")
        pq.write_table(build_lists(both, None), folder / "train.parquet")
        shutil.copy2(old.valid, folder / "valid.parquet")
        scores = labels.select("pair_id", teacher="score")
        held.join(scores, on="pair_id", maintain_order="left").write_parquet(folder / "held.parquet")
        write_stores(labellers, folder)
        made = own - train["query_id"].n_unique()
        told |= {
            "pairs": asked.height,
            "labelled anew": missing,
            "lists": {
                "shown": train["query_id"].n_unique(),
                "new items": made,
                "replayed": replayed["query_id"].n_unique(),
            },
            "held-out queries": held["query_id"].n_unique(),
            "drift": _drift(shown, prepared, upto, config),
        }
        write_json(folder / "fresh.json", told)

    folder = run.step("lists", key, build)
    return Fresh(Labelled(key, folder, labellers[0].store.fingerprint, labellers[0].store.where), folder)


def fresh_pairs(
    config: Config, prepared: Prepared, shown: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Pairs that were shown, of queries to learn from and of held-out ones (PAIR, pair_id, clicks, label); and counts.

    Queries that judgements hold out are held out here too, and others by the same hash. An item that came as an id
    alone has the text that the data know of it; without one it is left out.

    Raises:
        DataError: nothing is left.
    """
    wanted = config.refresh
    texts = prepared.items.unique("item_id", keep="first").select("item_id", known="text")
    rows = shown.join(texts, on="item_id", how="left", maintain_order="left")
    rows = rows.with_columns(text=pl.coalesce(normalise_column("text"), "known")).filter(pl.col("text") != "")
    if rows.is_empty():
        raise DataError(
            "refresh: no impression has a query and texts to learn from; serve with serve.queries=keep, and send texts"
            " or have the items in data.items"
        )
    told: dict[str, Any] = {"impressions": rows["request_id"].n_unique(), "clicks": int(rows["clicked"].sum())}
    seen, unknown_why = _examined(rows, wanted.positions)
    if seen:
        targets = click_targets(rows, seen, wanted.clip)
        told["examination"] = seen.as_dict()
    else:  # nothing tells who looks where, so that clicks tell nothing either
        targets = rows.select("query", "item_id").unique().with_columns(clicks=pl.lit(None, pl.Float64))
        told["clicks not used"] = unknown_why
    asked = rows.group_by("query").agg(requests=pl.col("request_id").n_unique())
    asked = asked.sort("requests", "query", descending=[True, False]).head(wanted.queries)
    pairs = rows.group_by("query", "item_id", maintain_order=True).agg(pl.col("text").last(), shown=pl.len())
    pairs = pairs.join(asked, on="query").sort(
        "requests", "query", "shown", "item_id", descending=[True, False, True, False]
    )
    pairs = pairs.filter(pl.int_range(pl.len()).over("query") < wanted.items)
    pairs = pairs.join(targets, on=["query", "item_id"], how="left", maintain_order="left")
    judged = dict(prepared.pairs.select("query", "split").unique().iter_rows())
    ids = [digest(query) for query in pairs["query"]]
    splits = [judged.get(query) or draw_split(own, config.data) for query, own in zip(pairs["query"], ids, strict=True)]
    pairs = with_pair_id(
        pairs.with_columns(query_id=pl.Series(ids, dtype=pl.String), split=pl.Series(splits, dtype=pl.String))
    )
    judgements = prepared.pairs.group_by("pair_id").agg(pl.col("label").mean())
    pairs = pairs.select(*PAIR, "pair_id", "split", "clicks").join(
        judgements, on="pair_id", how="left", maintain_order="left"
    )
    train, held = pairs.filter(pl.col("split") == "train"), pairs.filter(pl.col("split") != "train")
    if train.is_empty():
        raise DataError("refresh: every query that was asked is held out; wait for more")
    return train, held, told


def _examined(rows: pl.DataFrame, most: int) -> tuple[Examination | None, str]:
    """Examination of as many of the first positions as can be told, or why of none."""
    why = "nothing was shown but at one position"
    for positions in range(min(most, 1 + max(rows["position"])), 1, -1):
        try:
            return examination(rows, positions), ""
        except DataError as error:  # of positions so far down too little is known
            why = str(error)
    return None, why


def new_pairs(config: Config, prepared: Prepared, train: pl.DataFrame) -> list[pl.DataFrame]:
    """Further items for the queries, and queries made of the words of items that nobody judged or clicked."""
    wanted, labels = config.refresh, config.labels
    seen = train.select("item_id", "text").with_columns(source=pl.lit("feedback"))
    items = pl.concat([prepared.items, seen]).unique("text", keep="first", maintain_order=True)
    index = Bm25(items["text"].to_list()) if wanted.candidates or wanted.new_queries else None
    found = []
    if index and wanted.candidates:
        found.append(unlabelled_pairs(train, items, index, wanted.candidates, labels.mix, labels.seed))
    if index and wanted.new_queries:
        clicked = train.filter(pl.col("clicks") > 0)["text"]
        warm = pl.concat([prepared.pairs["text"], clicked]).unique()
        cold = ~items["text"].is_in(warm.implode())
        taken = set(prepared.pairs["query"]) | set(train["query"])
        count, mix = labels.made_candidates, labels.made_mix
        found.append(made_pairs(items, index, wanted.new_queries, count, mix, taken, labels.seed, cold))
    return [with_pair_id(pairs) for pairs in found if pairs.height]


def flat(lists: Any) -> pl.DataFrame:
    """A row for each item of candidate lists."""
    return pl.DataFrame(pl.from_arrow(lists)).explode("items").unnest("items")


def some_lists(pairs: pl.DataFrame, fresh: int, config: Config) -> pl.DataFrame:
    """Lists of before, drawn at random, so many that they are the configured share of all."""
    share = config.refresh.replay
    queries = pairs["query_id"].unique(maintain_order=True)
    count = min(len(queries), round(fresh * share / (1 - share)))
    kept = queries.sample(count, seed=config.labels.seed)
    return pairs.filter(pl.col("query_id").is_in(kept.implode()))


def _missing(labeller: Labeller, asked: pl.DataFrame) -> int:
    """Pairs that a store has no label of."""
    with labeller.store.reading():
        return asked.lazy().join(labeller.store.scan().select("pair_id"), on="pair_id", how="anti").collect().height


def _drift(shown: pl.DataFrame, prepared: Prepared, upto: Upto, config: Config) -> Mapping[str, Any]:
    """What drifted since what was learnt from before, and what no judgement knows."""
    learnt = prepared.pairs
    now = shown.filter(pl.col("batch") > upto.before)
    return {
        "stability": drift_since(shown, upto.before),
        "unknown": unknown(now, learnt["query"], learnt["item_id"]),
        "limit": config.refresh.drift,
    }
