"""Judgements to pairs: validate, render, split by query; pairs and soft labels to candidate lists."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rankstill.catalogue import ShopSize, generate_shop
from rankstill.config import Data, Source
from rankstill.errors import DataError
from rankstill.reading import fingerprint_files, list_files
from rankstill.rows import Tally, read_sources
from rankstill.schema import ITEMS, LISTS, PAIRS, SPLITS
from rankstill.text import digest, made_id, normalise_column, render_columns

_HELD_OUT = {split: place for place, split in enumerate(SPLITS)}


def fingerprint_data(config: Data) -> str:
    """Hash of the settings and of the files they point to: the same hash means the same pairs."""
    settings = config.model_dump_json()
    if config.shop is not None:
        return digest(settings)
    files = [
        fingerprint_files(list_files(source.path, f"data.{kind}.{number}.path"))
        for kind in ("sources", "items")
        for number, source in enumerate(getattr(config, kind))
    ]
    return digest(settings, *files)


def prepare(config: Data, folder: Path) -> dict[str, Any]:
    """Write pairs.parquet, items.parquet, rejects.jsonl and summary.json into `folder`; return the summary.

    Raises:
        DataError: a source that can't be read, lacks a column, or has too many unusable rows.
    """
    with (folder / "rejects.jsonl").open("wb") as rejects:
        if config.shop is not None:
            frame, tallies, extra_items = _shop_pairs(config)
        else:
            extra_items = read_sources(config, "items", rejects)[0] if config.items else None
            frame, tallies = read_sources(config, "sources", rejects, extra_items)
    pairs, merged, remarks = assemble_pairs(frame, config)
    items = pairs.select(ITEMS.names)
    if extra_items is not None:
        items = pl.concat([items, with_item_text(extra_items, config.fields).select(ITEMS.names)])
    items = items.unique("text", keep="first", maintain_order=True)
    pq.write_table(pairs.to_arrow().cast(PAIRS), folder / "pairs.parquet")
    pq.write_table(items.to_arrow().cast(ITEMS), folder / "items.parquet")
    counts = {row["split"]: row for row in _count_splits(pairs).to_dicts()}
    summary = {
        "sources": [{"name": t.name, "rows": t.rows, "rejected": t.rejected} for t in tallies],
        "pairs": pairs.height,
        "merged": merged,
        "items": items.height,
        "splits": counts,
        "remarks": remarks,
    }
    (folder / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    return summary


def read_judgements(sources: Sequence[Source], config: Data, rejects: Path | None = None) -> pl.DataFrame:
    """Pairs (schema PAIRS) of some files alone, such as those that a model is evaluated on."""
    with Path(rejects or os.devnull).open("wb") as stream:
        rows = config.model_copy(update={"sources": tuple(sources), "shop": None})
        items = read_sources(rows, "items", stream)[0] if rows.items else None
        frame, _ = read_sources(rows, "sources", stream, items, label="--judgements")
    return assemble_pairs(frame, rows)[0]


def read_items(source: Source, config: Data, field: str = "--items") -> pl.DataFrame:
    """Items (item_id, text) of one file alone, such as those that are indexed; the last of equal ids counts.

    `field` names the file in messages.
    """
    with Path(os.devnull).open("wb") as stream:
        rows = config.model_copy(update={"items": (source,), "shop": None})
        frame, _ = read_sources(rows, "items", stream, label=field)
    items = with_item_text(frame, config.fields).select("item_id", "text")
    return items.unique("item_id", keep="last", maintain_order=True)


class Assembled(NamedTuple):
    """Pairs, and what became of the rows that they were made of."""

    pairs: pl.DataFrame
    """Schema PAIRS."""
    merged: int
    """Rows that were merged into others."""
    remarks: list[str]
    """What in the rows may not be meant: contradictions, and how they were settled."""


def assemble_pairs(frame: pl.DataFrame, config: Data) -> Assembled:
    """Raw judgement rows to pairs: text, ids and splits; an item judged more than once gets its mean label.

    Two items of a query that happen to have the same text stay two: they share a `pair_id`, and so a soft label.
    """
    frame = with_item_text(frame, config.fields).with_columns(normalise_column("query").str.to_lowercase())
    pairs = frame.group_by("query", "item_id", "text", maintain_order=True).agg(
        pl.col("label").mean(),
        # The most held-out split of a query that has several.
        pl.col("split").replace_strict(_HELD_OUT, default=None, return_dtype=pl.Int64).max(),
        pl.col("source").first(),
        pl.col("frequency").max(),
    )
    queries = pairs.group_by("query", maintain_order=True).agg(
        query_id=pl.first("query").map_elements(digest, return_dtype=pl.String),
        # A query that any source holds out is held out everywhere: no query is on both sides.
        held_out=pl.col("split").max(),
    )
    drawn = [draw_split(query_id, config) for query_id in queries["query_id"]]
    queries = queries.with_columns(
        split=pl.coalesce(
            pl.col("held_out").replace_strict(dict(enumerate(SPLITS)), default=None, return_dtype=pl.String),
            pl.Series(drawn, dtype=pl.String),
        )
    )
    pairs = pairs.drop("split").join(queries.select("query", "query_id", "split"), on="query", maintain_order="left")
    pairs = with_pair_id(pairs)
    return Assembled(pairs.select(PAIRS.names), frame.height - pairs.height, _remarks(frame))


def _remarks(frame: pl.DataFrame) -> list[str]:
    """What rows say of each other that they can't all mean."""
    looked_at = (
        (["query", "item_id", "text"], "label", "pairs were judged with different labels; each has their mean"),
        (["query"], "split", "queries have rows of several splits; each is held out as far as any of them says"),
        (["item_id"], "text", "item ids have several texts; each text is an item of its own"),
    )
    found = []
    for key, value, remark in looked_at:
        several = frame.group_by(key).agg(pl.col(value).drop_nulls().n_unique()).filter(pl.col(value) > 1).height
        if several:
            found.append(f"{several:,} {remark}")
    return found


def with_pair_id(pairs: pl.DataFrame) -> pl.DataFrame:
    """Add `pair_id` to rows that have the normalised `query` and the rendered `text`."""
    ids = [digest(query, text) for query, text in pairs.select("query", "text").iter_rows()]
    return pairs.with_columns(pair_id=pl.Series(ids, dtype=pl.String))


def with_item_text(frame: pl.DataFrame, fields: Iterable[str]) -> pl.DataFrame:
    """Add the rendered `text`; an item without an id is named by its text.

    Raises:
        DataError: none of the fields is a column, or every text would be empty.
    """
    present = [name for name in fields if name in frame.columns]
    if not present or (frame.height and frame.select((render_columns(present) == "").all()).item()):
        wanted = ", ".join(fields)
        raise DataError(f"data.fields: no item has any of {wanted}; name fields that the rows have, such as title")
    frame = frame.with_columns(text=render_columns(present))
    missing = frame["item_id"].is_null() | (frame["item_id"] == "")
    if missing.any():
        made = pl.Series(map(made_id, frame["text"]), dtype=pl.String)
        frame = frame.with_columns(item_id=pl.when(missing).then(made).otherwise("item_id"))
    return frame


def build_lists(pairs: pl.DataFrame, labels: pl.DataFrame | None) -> pa.Table:
    """Candidate lists (schema LISTS) of pairs, joined to soft labels where given; order of input kept.

    Without them, pairs may have scores and logits already. A pair with neither judgement nor soft label, such as one
    that the teacher can't score, is left out.
    """
    joined = pairs
    if labels is not None:
        soft = labels.select("pair_id", "score", "logits")
        joined = pairs.join(soft, on="pair_id", how="left", maintain_order="left")
    absent = {"score", "logits", "clicks"} - set(joined.columns)
    joined = joined.with_columns(**dict.fromkeys(absent))
    kept = (pl.col("label", "score", "clicks").cast(pl.Float32), pl.col("logits").cast(pl.List(pl.Float32)))
    joined = joined.filter(pl.any_horizontal(pl.col("label", "score").is_not_null())).with_columns(kept)
    items = pl.struct("item_id", "text", "label", "score", "logits", "clicks")
    lists = joined.group_by("query_id", "query", maintain_order=True).agg(items=items)
    return lists.to_arrow().cast(LISTS)


def _shop_pairs(config: Data) -> tuple[pl.DataFrame, list[Tally], pl.DataFrame]:
    assert config.shop is not None
    shop = generate_shop(ShopSize(**config.shop.model_dump()))
    frame = shop.judgements.with_columns(split=pl.lit(None, dtype=pl.String), source=pl.lit("shop"))
    return frame, [Tally("shop", rows=frame.height)], shop.items.with_columns(source=pl.lit("shop"))


def draw_split(query_id: str, config: Data) -> str:
    """A query's split from the hash of its text alone, so that it never changes."""
    draw = int(query_id[:8], 16) / 2**32
    return "test" if draw < config.test else "valid" if draw < config.test + config.valid else "train"


def _count_splits(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.group_by("split").agg(queries=pl.col("query_id").n_unique(), pairs=pl.len()).sort("split")
