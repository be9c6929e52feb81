"""Judgements to pairs: validate, render, split by query; pairs and soft labels to candidate lists."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rankstill.catalogue import ShopSize, generate_shop
from rankstill.config import Data, Source
from rankstill.errors import DataError
from rankstill.reading import Row, fingerprint_files, list_files, read_rows, short_name
from rankstill.schema import ITEMS, LISTS, PAIRS, SPLITS
from rankstill.text import digest, encodable, made_id, normalise, normalise_column, render_columns

CHUNK_ROWS = 50_000
LABEL_LIMIT = 30.0
"""Largest label: nDCG's gain is 2^label - 1, and float32 losses have to hold its sums."""
LABEL_STEP = 1e-9
"""Smallest label over 0: of a smaller one, the gain is 0 in part or in whole."""
_REQUIRED = ("query", "title", "label")
_HELD_OUT = {split: place for place, split in enumerate(SPLITS)}


@dataclass
class Tally:
    """What became of the rows of one source."""

    name: str
    rows: int = 0
    rejected: int = 0
    first_reason: str = ""
    columns: set[str] = field(default_factory=set)


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
            extra_items = _read_sources(config, "items", rejects)[0] if config.items else None
            frame, tallies = _read_sources(config, "sources", rejects, extra_items)
    pairs, merged = assemble_pairs(frame, config)
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
    }
    (folder / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    return summary


def read_judgements(sources: Sequence[Source], config: Data, rejects: Path | None = None) -> pl.DataFrame:
    """Pairs (schema PAIRS) of some files alone, such as those that a model is evaluated on."""
    with Path(rejects or os.devnull).open("wb") as stream:
        rows = config.model_copy(update={"sources": tuple(sources), "shop": None})
        items = _read_sources(rows, "items", stream)[0] if rows.items else None
        frame, _ = _read_sources(rows, "sources", stream, items, label="--judgements")
    return assemble_pairs(frame, rows)[0]


def read_items(source: Source, config: Data, field: str = "--items") -> pl.DataFrame:
    """Items (item_id, text) of one file alone, such as those that are indexed; the last of equal ids counts.

    `field` names the file in messages.
    """
    with Path(os.devnull).open("wb") as stream:
        rows = config.model_copy(update={"items": (source,), "shop": None})
        frame, _ = _read_sources(rows, "items", stream, label=field)
    items = with_item_text(frame, config.fields).select("item_id", "text")
    return items.unique("item_id", keep="last", maintain_order=True)


def assemble_pairs(frame: pl.DataFrame, config: Data) -> tuple[pl.DataFrame, int]:
    """Raw judgement rows to pairs: text, ids and splits; an item judged more than once gets its mean label.

    Two items of a query that happen to have the same text stay two: they share a `pair_id`, and so a soft label.

    Returns the pairs and the number of rows that were merged into others.
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
    return pairs.select(PAIRS.names), frame.height - pairs.height


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


def _read_sources(
    config: Data, kind: str, rejects: IO[bytes], items: pl.DataFrame | None = None, label: str | None = None
) -> tuple[pl.DataFrame, list[Tally]]:
    """All usable rows of all sources of one kind ("sources" or "items"), unusable ones written to `rejects`.

    Rows without a title are those of the item of the same id in `items`, the last of them.
    """
    frames, tallies = [], []
    fields = tuple(dict.fromkeys(("title", *config.fields)))
    of_items = None if items is None else Lookup(fields, items)
    for number, source in enumerate(getattr(config, kind)):
        where = label or f"data.{kind}.{number}.path"
        files = list_files(source.path, where)
        known = {"query", "item_id", "title", "label", "split", "frequency", *config.fields}
        if unknown := sorted(set(source.columns) - known):
            raise DataError(
                f"{where.removesuffix('.path')}.columns has {unknown[0]!r}, which is no column of ours; use"
                f" {', '.join(sorted(known))} (item fields are those of data.fields)"
            )
        tally = Tally(source.name or short_name(source.path.rstrip("/")).split(".")[0])
        rows = itertools.chain.from_iterable(read_rows(file) for file in files)
        required = ("title",) if kind == "items" else _REQUIRED if of_items is None else ("query", "label")
        frames += [_usable(chunk, source, required, config.fields, tally, rejects, of_items) for chunk in _chunks(rows)]
        _check_tally(tally, source, required, config.max_bad_rows, where)
        tallies.append(tally)
    return pl.concat(frames), tallies


class Lookup:
    """Fields of items by their id."""

    def __init__(self, fields: tuple[str, ...], items: pl.DataFrame) -> None:
        """`items` have the columns item_id and `fields`."""
        known = items.filter(pl.col("item_id").is_not_null()).select("item_id", *fields)
        self._fields = fields
        self._rows = {item_id: values for item_id, *values in known.iter_rows()}

    def complete(self, values: dict[str, Any]) -> str:
        """Fill in the fields of an item that a row has no title of; why that can't be, or nothing."""
        if values["title"] is not None and normalise(str(values["title"])):
            return ""
        found = self._rows.get(str(values["item_id"]))
        if found is None:
            return f"no title, and item_id {values['item_id']!r} is in no file of data.items"
        values.update({name: one for name, one in zip(self._fields, found, strict=True) if values[name] is None})
        values["title"] = found[self._fields.index("title")]
        return ""


def _chunks(rows: Iterator[Row]) -> Iterator[tuple[Row, ...]]:
    while chunk := tuple(itertools.islice(rows, CHUNK_ROWS)):
        yield chunk


def _usable(
    rows: Iterable[Row],
    source: Source,
    required: tuple[str, ...],
    fields: tuple[str, ...],
    tally: Tally,
    rejects: IO[bytes],
    items: "Lookup | None",
) -> pl.DataFrame:
    """The usable rows of a chunk as strings and numbers under our column names."""
    names = dict.fromkeys(("query", "item_id", "title", *fields, "split", "frequency", "label"))
    kept: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        tally.rows += 1
        tally.columns.update(row.values)
        values = {name: row.values.get(source.columns.get(name, name)) for name in names}
        problem = row.problem or (items.complete(values) if items else "")
        problem = problem or _problem(values, required, source.label_scale)
        if problem:
            tally.rejected += 1
            tally.first_reason = tally.first_reason or f"{short_name(row.file)} line {row.line}: {problem}"
            line = {"file": row.file, "line": row.line, "reason": problem, "row": row.values}
            rejects.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))
            continue
        for name, value in values.items():
            kept[name].append(value)
    types = {"label": pl.Float64, "frequency": pl.Int64}
    judged = "label" in required
    labels = [float(value) * source.label_scale if judged else None for value in kept.pop("label")]
    counts = [_count(value) for value in kept.pop("frequency")]
    texts = {name: [None if v is None else _clean(v) for v in column] for name, column in kept.items()}
    frame = pl.DataFrame({**texts, "label": labels, "frequency": counts}, {**dict.fromkeys(texts, pl.String), **types})
    return frame.with_columns(source=pl.lit(tally.name))


def _problem(values: dict[str, Any], required: tuple[str, ...], label_scale: float) -> str:
    """Why a row can't be used, or an empty string."""
    for name, value in values.items():
        if isinstance(value, bytes | list | dict):
            return f"{name} is {type(value).__name__}, not text"
    for name in ("query", "title"):
        if name in required and (values[name] is None or not normalise(str(values[name]))):
            return f"no {name}"
    if "label" in required:
        try:
            label = float(values["label"]) * label_scale
        except (TypeError, ValueError):
            return f"label {values['label']!r} is not a number"
        if not (math.isfinite(label) and label >= 0):
            return f"label {values['label']!r} is not a finite number of 0 or more"
        shown = f"label {values['label']!r} (scaled: {label:g})"
        if 0 < label < LABEL_STEP:
            return f"{shown} is under {LABEL_STEP:g}, where gains 2^label - 1 vanish"
        if label > LABEL_LIMIT:
            return f"{shown} is over {LABEL_LIMIT:g}, where gains 2^label overflow"
    if values["split"] is not None and values["split"] not in ("", *SPLITS):
        return f"split {values['split']!r} is none of {', '.join(SPLITS)}"
    return ""


def _count(value: Any) -> int | None:
    """A whole number, or nothing."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and 0 <= number < 2**63 else None


def _clean(value: Any) -> str | None:
    """A cell as text that UTF-8 can hold; an empty one is missing."""
    return encodable(str(value)) or None


def _check_tally(tally: Tally, source: Source, required: tuple[str, ...], limit: float, where: str) -> None:
    if tally.rows == 0:
        raise DataError(f"{where}: {source.path!r} is empty; give a file with rows")
    if "title" not in required and source.columns.get("title", "title") not in tally.columns:
        required = (*required, "item_id")
    mapped = [name for name in source.columns if name not in required]
    absent = [name for name in (*required, *mapped) if source.columns.get(name, name) not in tally.columns]
    if absent and tally.columns:
        name = absent[0]
        remedy = f"name the column that holds it with columns: {{{name}: NAME}}"
        if name == "title" and "label" in required:
            remedy += ", or the files that hold the items with data.items"
        raise DataError(
            f"{where}: {source.path!r} has no column {source.columns.get(name, name)!r}, only"
            f" {', '.join(sorted(tally.columns))}; {remedy}"
        )
    if tally.rejected == tally.rows or tally.rejected > limit * tally.rows:
        raise DataError(
            f"{where}: {tally.rejected} of {tally.rows} rows of {source.path!r} are unusable, over"
            f" data.max_bad_rows={limit:g}; the first is {tally.first_reason}; mend them or raise the limit"
        )


def draw_split(query_id: str, config: Data) -> str:
    """A query's split from the hash of its text alone, so that it never changes."""
    draw = int(query_id[:8], 16) / 2**32
    return "test" if draw < config.test else "valid" if draw < config.test + config.valid else "train"


def _count_splits(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.group_by("split").agg(queries=pl.col("query_id").n_unique(), pairs=pl.len()).sort("split")
