"""What was shown and what shoppers did, in two Delta Lake tables: written in groups, each event once.

A group is a commit with a number of its own (a Delta transaction), one more than the last. A writer that doesn't know
the last group, because another process wrote it, fails, looks, and tries again without what is there. What `add` or
`keep` returned from is on disk; what is kept comes into the table with the next `settle`, of this writer or, where that
died, of whoever opens the table next.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from rankstill.errors import ConfigError, DamagedError, in_brief
from rankstill.journal import Journal, sync
from rankstill.merging import RETENTION, merge, merge_aside
from rankstill.schema import EVENTS, IMPRESSIONS
from rankstill.text import digest
from rankstill.trees import below, shown

APP = "rankstill"
"""Name of the transactions."""
KNOWN_DAYS = 3
"""An event that comes again within so many days isn't stored again."""
COMPACT_COMMITS = 50
"""After so many groups their files are merged: a commit takes the longer the more files there are."""
PROPERTIES = {"delta.dataSkippingStatsColumns": "batch", **RETENTION}
"""Of a new table; the statistics are of columns whose least and largest values stand in its log."""
ATTEMPTS = 20
FAILURES = (OSError, DeltaError, pa.ArrowException)
Row = Mapping[str, Any]


class Log:
    """One table, of which readers see each `key` once."""

    def __init__(self, location: str, schema: pa.Schema, key: str, remember: bool) -> None:
        """Open the table, or make it; with `remember`, keys of the last KNOWN_DAYS aren't stored again either.

        Raises:
            ConfigError: the location can't be used.
            DamagedError: what is there can't be read.
        """
        self._schema, self._key, self._location = schema, key, location
        self._row_schema = pa.schema([field for field in schema if field.name not in ("batch", "day")])
        self._local = Path(location) if "://" not in location else None
        try:
            if self._local:
                self._local.mkdir(parents=True, exist_ok=True)
            self._table = DeltaTable.create(
                location, schema=schema, partition_by=["day"], mode="ignore", configuration=PROPERTIES
            )
        except FAILURES as error:
            raise ConfigError(
                f"storage: {shown(location)!r} can't hold a Delta table ({in_brief(error)}); give a folder, or a URL"
                " with its credentials in the environment"
            ) from error
        self._remember = remember
        self._known: dict[str, set[bytes]] = {}
        """Keys by the day on which they were stored."""
        self._last = -1
        self._since_compaction = 0
        self._journal = Journal(self._local / "_journal", self._row_schema) if self._local else None
        self._kept: set[bytes] = set()
        """Keys of what is in the journal."""
        self._look()
        self.settle()

    def keep(self, rows: Sequence[Row], now: datetime | None = None) -> list[bool]:
        """Have rows on disk, whence `settle` takes them into the table; which are new. At a URL they are added.

        Raises:
            DamagedError: they can't be written.
            ValueError: a row lacks what it can't be without.
        """
        now = now or datetime.now(UTC)
        if self._journal is None:
            return self.add(rows, now)
        fresh: dict[bytes, None] = {}
        keys = [_hash(row[self._key]) for row in rows]
        new = [key not in self._kept and self._is_new(key, fresh) for key in keys]
        added = [{"received": now, **row} for row, is_new in zip(rows, new, strict=True) if is_new]
        table = pa.Table.from_pylist(added, schema=self._row_schema)
        table.to_pylist()  # or `settle` couldn't do it, for these rows and all beside them
        for field in self._row_schema:
            if not field.nullable and table[field.name].null_count:
                raise ValueError(f"{field.name} is missing in a row")
        if added:
            with self._told("can't be written to", "free space, or restore it"):
                self._journal.append(table)
        self._kept.update(fresh)
        return new

    def settle(self, now: datetime | None = None) -> None:
        """Take into the table what was kept, also by writers who are gone. Raises what `add` does."""
        if self._journal is None:
            return
        for rows in self._journal.take_over():
            self.add(rows.to_pylist(), now)
        self._kept.clear()

    @property
    def unsettled(self) -> bool:
        """Whether anything was kept since `settle` began."""
        return self._journal is not None and self._journal.open

    def add(self, rows: Sequence[Row], now: datetime | None = None) -> list[bool]:
        """Append rows; which of them are new. They are on disk when this returns.

        Raises:
            DamagedError: the table can't be written to.
        """
        now = now or datetime.now(UTC)
        for _ in range(ATTEMPTS):
            fresh: dict[bytes, None] = {}
            new = [self._is_new(_hash(row[self._key]), fresh) for row in rows]
            added = [row for row, is_new in zip(rows, new, strict=True) if is_new]
            if added and not self._commit(added, now):
                self._look()
                continue
            self._learn(now.date().isoformat(), fresh)
            return new
        raise DamagedError(f"{shown(self._location)!r} is written to by too many at a time; let one endpoint write")

    def _is_new(self, key: bytes, fresh: dict[bytes, None]) -> bool:
        """Whether neither the table nor the rows before this one have a key; it is `fresh` then."""
        if not self._remember:
            return True
        if key in fresh or any(key in day for day in self._known.values()):
            return False
        fresh[key] = None
        return True

    def _learn(self, day: str, keys: Iterable[bytes]) -> None:
        """Remember the keys of a day, and forget those of days that are long gone."""
        self._known.setdefault(day, set()).update(keys)
        for old in [one for one in self._known if one < _first_known_day()]:
            del self._known[old]

    def _commit(self, rows: Sequence[Row], now: datetime) -> bool:
        """Append one group; False where somebody else was faster."""
        batch = self._last + 1
        common = {"received": now, "batch": batch, "day": now.date().isoformat()}
        table = pa.Table.from_pylist([{**common, **row} for row in rows], schema=self._schema)
        transaction = CommitProperties(app_transactions=[Transaction(APP, batch)])
        delta = self._table  # which a compaction replaces
        with self._told("can't be written to", "free space, or restore it"):
            try:
                write_deltalake(delta, table, mode="append", commit_properties=transaction)
            except CommitFailedError:
                return False
            except DeltaError:
                if self._is_behind(delta):  # of commits whose files are gone
                    return False
                raise
        self._last = batch
        self._since_compaction += 1
        if self._local:
            _sync(self._local, delta.version())
        return True

    def _is_behind(self, delta: DeltaTable) -> bool:
        """Whether others have written since."""
        try:
            return DeltaTable(self._location).version() > delta.version()
        except FAILURES:
            return False

    @property
    def wants_compaction(self) -> bool:
        """Whether many groups were written since the last one."""
        return self._since_compaction >= COMPACT_COMMITS

    def compact(self, aside: bool = False) -> None:
        """Merge small files, `aside` in a process of low priority; rows stay as they are, and others may write."""
        self._since_compaction = 0
        (merge_aside if aside else merge)(self._location)
        self._table = DeltaTable(self._location)  # the other one carries all the commits before

    def _look(self) -> None:
        """Learn what others wrote."""
        with self._told("can't be read", "restore it"):
            self._table.update_incremental()
            seen = self._table.transaction_version(APP)
            if self._remember:
                filters = [("day", ">=", _first_known_day()), ("batch", ">", self._last)]
                found = self._table.to_pyarrow_table(filters=filters, columns=[self._key, "day"])
                days: dict[str, list[bytes]] = {}
                for day, key in zip(found["day"].to_pylist(), found[self._key].to_pylist(), strict=True):
                    days.setdefault(day, []).append(_hash(key))
                for day, keys in days.items():
                    self._learn(day, keys)
        self._last = -1 if seen is None else seen

    def last(self) -> int:
        """Number of the last group; -1 where there is none."""
        self._look()
        return self._last

    def read(self, after: int = -1, upto: int | None = None, columns: Sequence[str] = ()) -> pl.DataFrame:
        """Rows of groups behind number `after`, up to `upto` where that is given, each key once: the first that came.

        `columns` are those that are wanted, where not all are.

        Raises:
            DamagedError: the table can't be read.
        """
        with self._told("can't be read", "restore it"):
            self._table.update_incremental()
            bounds = [("batch", ">", after), *([("batch", "<=", upto)] if upto is not None else [])]
            named = [*dict.fromkeys([*columns, self._key, "batch"])] if columns else self._schema.names
            table = self._table.to_pyarrow_table(filters=bounds, columns=named)
        found = pl.DataFrame(pl.from_arrow(table.select(named)))
        return found.sort("batch", maintain_order=True).unique(self._key, keep="first", maintain_order=True)

    def delete(self, user: str = "", before: str = "") -> int:
        """Delete the rows of a shopper (`user_digest`), or those of days before one; how many. The files that
        held them go with a later merge.

        Raises:
            DamagedError: somebody else wrote too often meanwhile.
        """
        what = f"\"user\" = '{user}'" if user else f"day < '{before}'"
        table = DeltaTable(self._location)
        with self._told("can't be changed", "try again"):
            found = table.delete(what)
            table.optimize.compact()
            table.vacuum(dry_run=False)
        return int(found.get("num_deleted_rows") or 0)

    @contextmanager
    def _told(self, what: str, remedy: str) -> Iterator[None]:
        """Failures of disks, networks and Delta in a line."""
        try:
            yield
        except FAILURES as error:
            raise DamagedError(f"{shown(self._location)!r} {what} ({in_brief(error)}); {remedy}") from error


class EventLog:
    """Both tables, in a folder or at a URL."""

    def __init__(self, location: str) -> None:
        """Open them, or make them; raises what `Log` does."""
        self.events = Log(below(location, "events"), EVENTS, "event_id", remember=True)
        self.impressions = Log(below(location, "impressions"), IMPRESSIONS, "request_id", remember=False)

    def shown(self, after: int = -1, upto: tuple[int, int] | None = None) -> pl.DataFrame:
        """A row for each item that was shown in groups of impressions behind `after`, as `feedback` wants them.

        `upto` are the last groups that count, of impressions and of events.

        Columns request_id, query, item_id, text, position, score, swap, propensity, model_version, at, batch, clicked,
        and gain, for what was done with the item: 1 a click, 2 a cart, 3 a purchase, 0 nothing or a rejection. An event
        without a request_id belongs to the last impression of its query, in the day before it, that has its item.
        """
        last, last_event = upto or (None, None)
        rows = self.impressions.read(after, last).drop("user", "received", "day")
        rows = rows.explode("items").unnest("items").with_columns(pl.col("position").cast(pl.Int64))
        gains = self._gains(rows, last_event)
        return rows.join(gains, on=["request_id", "item_id"], how="left", maintain_order="left").with_columns(
            gain=pl.col("gain").fill_null(0), clicked=pl.col("gain").fill_null(0) > 0
        )

    def outcomes(self, after: tuple[int, int] = (-1, -1)) -> pl.DataFrame:
        """A row for each request behind a group of impressions and one of events: request_id, model_version, at, and
        gain, the most that was done with any of its items. Events without a request_id don't count.
        """
        asked = self.impressions.read(after[0], columns=["request_id", "model_version", "at"]).drop("batch")
        events = self.events.read(after[1], columns=["event_id", "event", "request_id"])
        events = events.filter(pl.col("request_id").is_not_null())
        gain = pl.col("event").replace_strict(GAINS, default=0, return_dtype=pl.Int64)
        gains = events.group_by("request_id").agg(gain=gain.max())
        joined = asked.join(gains, on="request_id", how="left", maintain_order="left")
        return joined.with_columns(pl.col("gain").fill_null(0))

    def _gains(self, rows: pl.DataFrame, last: int | None) -> pl.DataFrame:
        """The most that was done with an item of a request."""
        events = self.events.read(upto=last).with_columns(gain=pl.col("event").replace_strict(GAINS, default=0))
        events = events.select("request_id", "item_id", "query", "position", "at", "gain")
        own, loose = events.filter(pl.col("request_id").is_not_null()), events.filter(pl.col("request_id").is_null())
        where = rows.select("request_id", "item_id", "query", "position", shown_at="at")
        placed = own.filter(pl.col("item_id").is_null()).drop("item_id", "query")
        placed = placed.with_columns(pl.col("position").cast(pl.Int64)).join(where, on=["request_id", "position"])
        late = loose.drop("request_id", "position").sort("at")
        found = late.join_asof(
            where.sort("shown_at"),
            left_on="at",
            right_on="shown_at",
            by=["query", "item_id"],
            tolerance="1d",
            check_sortedness=False,
        ).filter(pl.col("request_id").is_not_null())
        columns = ["request_id", "item_id", "gain"]
        parts = [own.filter(pl.col("item_id").is_not_null()), placed, found]
        joined = pl.concat([part.select(columns) for part in parts])
        return joined.group_by("request_id", "item_id").agg(pl.col("gain").max())


GAINS = {"click": 1, "add_to_cart": 2, "purchase": 3}
"""What events say for an item; the others say nothing for it."""


def _first_known_day() -> str:
    return (datetime.now(UTC) - timedelta(days=KNOWN_DAYS)).date().isoformat()


def _hash(key: str) -> bytes:
    return bytes.fromhex(digest(key))


def _sync(folder: Path, version: int) -> None:
    """Have the system write a commit to the disk: its files of rows, then itself."""
    commit = folder / "_delta_log" / f"{version:020}.json"
    added = [one["add"]["path"] for one in map(json.loads, commit.read_text().splitlines()) if "add" in one]
    files = [folder / path for path in added]
    for path in (*files, *{file.parent for file in files}, commit, commit.parent):
        sync(path)
