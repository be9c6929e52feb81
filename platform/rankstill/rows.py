"""Rows of input files under our column names: usable ones as a table, the others as rejects with their reasons."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import orjson
import polars as pl

from rankstill.config import Data, Source
from rankstill.errors import DataError
from rankstill.reading import Row, list_files, read_rows, short_name
from rankstill.schema import SPLITS
from rankstill.text import encodable, normalise

CHUNK_ROWS = 50_000
LABEL_LIMIT = 30.0
"""Largest label: nDCG's gain is 2^label - 1, and float32 losses have to hold its sums."""
LABEL_STEP = 1e-9
"""Smallest label over 0: of a smaller one, the gain is 0 in part or in whole."""
_REQUIRED = ("query", "title", "label")


@dataclass
class Tally:
    """What became of the rows of one source."""

    name: str
    rows: int = 0
    rejected: int = 0
    first_reason: str = ""
    columns: set[str] = field(default_factory=set)


def read_sources(
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
        if not self._rows:
            return "no title, and no item of data.items has an item_id (its columns: {item_id: NAME} say which it is)"
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
        if len(tally.columns) == 1 and (other := {";", "|", "\t", ","} & set(min(tally.columns))):
            remedy = f"it seems to separate cells by {min(other)!r}; use commas in .csv and tabs in .tsv"
        raise DataError(
            f"{where}: {source.path!r} has no column {source.columns.get(name, name)!r}, only"
            f" {', '.join(sorted(tally.columns))}; {remedy}"
        )
    if tally.rejected == tally.rows or tally.rejected > limit * tally.rows:
        raise DataError(
            f"{where}: {tally.rejected} of {tally.rows} rows of {source.path!r} are unusable, over"
            f" data.max_bad_rows={limit:g}; the first is {tally.first_reason}; mend them or raise the limit"
        )
