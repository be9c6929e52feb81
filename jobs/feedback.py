"""Look after what was shown and what shoppers did: show, import, forget, prune, compact."""

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from rankstill.cli import format_table, make_parser, run_command
from rankstill.errors import ConfigError, InputError

if TYPE_CHECKING:
    import argparse

    from rankstill.event_log import EventLog

DESCRIPTION = """Look after what was shown and what shoppers did.

LOG is its folder or URL, <root>/feedback where storage.feedback says nothing else.

show     impressions, events by kind, clicks by version, and how likely positions are to be looked at
import   a search log: a row for each item that was shown (--log), or User Behavior Insights of OpenSearch
         (--ubi-queries, --ubi-events)
forget   delete all that a shopper did, or was shown (--user)
prune    delete the days before one (--before)
compact  merge small files"""
POSITIONS = 10
GROUP = 5000
"""Rows of a commit."""


def main() -> None:
    """`python -m jobs.feedback`."""
    parser = make_parser("jobs.feedback", DESCRIPTION)
    parser.add_argument("action", choices=ACTIONS, metavar="show|import|forget|prune|compact")
    parser.add_argument("where", metavar="LOG")
    parser.add_argument("--log", metavar="FILE", help="import: rows of request_id, query, item_id, position, clicked")
    parser.add_argument(
        "--columns",
        default="{}",
        metavar="MAP",
        help="import: the file's names by ours, such as '{request_id: session}'",
    )
    parser.add_argument("--ubi-queries", metavar="FILE", help="import: queries with their hits")
    parser.add_argument("--ubi-events", metavar="FILE", help="import: what was done with them")
    parser.add_argument(
        "--max-bad-rows", type=float, default=0.001, metavar="SHARE", help="import: rows that may be unusable (0.001)"
    )
    parser.add_argument("--user", metavar="KEY", help="forget: the shopper's key, as it was sent")
    parser.add_argument("--before", metavar="DATE", help="prune: the first day that stays, such as 2026-01-31")
    parser.add_argument("--positions", type=int, default=POSITIONS, metavar="N", help="show: positions (10)")
    parser.add_argument("--json", action="store_true", help="show: print JSON")
    arguments = parser.parse_intermixed_args()
    if not 0 <= arguments.max_bad_rows <= 1:
        parser.error(f"--max-bad-rows is {arguments.max_bad_rows}; give a share, from 0 to 1")
    if arguments.positions < 1:
        parser.error(f"--positions is {arguments.positions}; give 1 or more")
    ACTIONS[arguments.action](arguments)


def show(arguments: "argparse.Namespace") -> None:
    """What there is."""
    import polars as pl

    from rankstill.errors import DataError
    from rankstill.feedback import examination

    log = opened(arguments, make=False)
    shown = log.shown()
    kinds = dict(log.events.read().group_by("event").len().sort("len", descending=True).iter_rows())
    versions = shown.group_by("model_version", maintain_order=True).agg(
        impressions=pl.col("request_id").n_unique(), clicks=pl.col("clicked").sum()
    )
    told: dict[str, Any] = {"impressions": shown["request_id"].n_unique(), "items": shown.height, "events": kinds}
    told["versions"] = versions.to_dicts()
    seen, unknown = None, ""
    try:
        seen = examination(shown, arguments.positions) if shown.height else None
    except DataError as error:
        unknown = str(error)
    if arguments.json:
        print(json.dumps({**told, "examination": seen.as_dict() if seen else None, "unknown": unknown}, indent=2))
        return
    rows = [["version", "impressions", "clicks", "clicks an impression"]]
    for one in told["versions"]:
        rate = f"{one['clicks'] / one['impressions']:.3f}"
        rows.append([one["model_version"], f"{one['impressions']:,}", f"{one['clicks']:,}", rate])
    print(format_table(rows) + "\n")
    print(", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "no events")
    if seen:
        print(f"\nhow likely a position is to be looked at, by {seen.method}:")
        print(format_table(seen.rows()))
    elif unknown:
        print(f"\n{unknown}")


def import_log(arguments: "argparse.Namespace") -> None:
    """Take over a search log."""
    import yaml

    from rankstill.progress import Reporter
    from rankstill.schema import ProgressEvent
    from rankstill.search_logs import groups, read_flat, read_ubi

    now = datetime.now(UTC)
    given = [bool(one) for one in (arguments.log, arguments.ubi_queries, arguments.ubi_events)]
    if given not in ([True, False, False], [False, True, True]):
        raise ConfigError("import takes --log, or --ubi-queries and --ubi-events; give one of these")
    with Reporter() as reporter:
        if arguments.log:
            try:
                columns = yaml.safe_load(arguments.columns) or {}
            except yaml.YAMLError:
                columns = None
            if not isinstance(columns, dict) or not all(isinstance(one, str) and one for one in columns.values()):
                raise ConfigError(f"--columns is {arguments.columns!r}; give a map, such as '{{request_id: session}}'")
            found = read_flat(arguments.log, columns, now)
        else:
            found = read_ubi(arguments.ubi_queries, arguments.ubi_events, now)
        found.require_good(arguments.max_bad_rows)
        log, counts = opened(arguments, make=True), {"impressions": 0, "events": 0}
        there = set(log.impressions.read()["request_id"])
        new = [one for one in found.impressions if one["request_id"] not in there]
        for name, table, rows in (("impressions", log.impressions, new), ("events", log.events, found.events)):
            for group in groups(rows, GROUP):
                counts[name] += sum(table.add(group))
                reporter.advance(ProgressEvent(name, len(group), len(rows), "row", {}))
    bad = f", {len(found.bad):,} rows left out (the first: {found.bad[0]})" if found.bad else ""
    print(f"{found.rows:,} rows: {counts['impressions']:,} impressions, {counts['events']:,} events new{bad}")


def forget(arguments: "argparse.Namespace") -> None:
    """Delete a shopper's rows."""
    from rankstill.text import user_digest

    if not arguments.user:
        raise ConfigError("forget takes --user, the shopper's key as it was sent")
    delete(arguments, user=user_digest(arguments.user))


def prune(arguments: "argparse.Namespace") -> None:
    """Delete old days."""
    if not arguments.before:
        raise ConfigError("prune takes --before, the first day that stays, such as 2026-01-31")
    try:
        day = date.fromisoformat(arguments.before)
    except ValueError:
        raise ConfigError(f"--before is {arguments.before!r}; give a day, such as 2026-01-31") from None
    delete(arguments, before=day.isoformat())


def delete(arguments: "argparse.Namespace", **what: str) -> None:
    """Delete rows of both tables."""
    log = opened(arguments, make=False)
    print(f"{log.impressions.delete(**what):,} impressions and {log.events.delete(**what):,} events deleted")


def compact(arguments: "argparse.Namespace") -> None:
    """Merge small files."""
    log = opened(arguments, make=False)
    for table in (log.impressions, log.events):
        table.compact()
    print("small files are merged")


def opened(arguments: "argparse.Namespace", make: bool) -> "EventLog":
    """The log; where it is not to be made, it has to be there.

    Raises:
        InputError: it isn't.
    """
    from deltalake import DeltaTable

    from rankstill.event_log import EventLog
    from rankstill.trees import below, shown

    tables = [below(arguments.where, name) for name in ("impressions", "events")]
    if not make and not all(map(DeltaTable.is_deltatable, tables)):
        place = shown(arguments.where)
        raise InputError(f"LOG is {place!r}, where nothing was kept; give <root>/feedback of an endpoint")
    return EventLog(arguments.where)


ACTIONS = {"show": show, "import": import_log, "forget": forget, "prune": prune, "compact": compact}

if __name__ == "__main__":
    run_command(main)
