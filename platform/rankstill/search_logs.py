"""Search logs of other systems, as impressions and events of ours."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rankstill.errors import DataError
from rankstill.reading import Row, list_files, read_rows, short_name
from rankstill.text import MOST_POSITION, digest, in_utc, normalise_query, user_digest

COLUMNS = ("request_id", "query", "item_id", "position", "clicked")
OPTIONAL = ("at", "user", "model_version", "text")
ACTIONS = {
    "click": "click",
    "item_click": "click",
    "product_click": "click",
    "add_to_cart": "add_to_cart",
    "purchase": "purchase",
    "buy": "purchase",
    "dwell": "dwell",
    "reject": "reject",
}
"""Actions of User Behavior Insights that we know, by what we call them."""
TRUE, FALSE = {"1", "true", "yes", "1.0"}, {"0", "false", "no", "0.0", ""}
FOREIGN = "imported"
"""Version of what others showed."""


@dataclass
class SearchLog:
    """What a log holds, and what of it can't be used."""

    impressions: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    bad: list[str] = field(default_factory=list)
    """File, line and reason."""

    def take(self, path: str, what: str, read: Callable[[Row], None]) -> None:
        """Read all rows of a file or folder; `read` raises ValueError for those that can't be used."""
        for file in list_files(path, what):
            for row in read_rows(file):
                self.rows += 1
                problem = row.problem
                if not problem:
                    try:
                        read(row)
                    except ValueError as error:
                        problem = str(error)
                if problem:
                    self.bad.append(f"{short_name(file)}:{row.line}: {problem}")

    def require_good(self, most: float) -> None:
        """Check that few rows are bad.

        Raises:
            DataError: more than the share `most`, or no row is good.
        """
        if self.bad and (len(self.bad) > most * self.rows or len(self.bad) == self.rows):
            raise DataError(
                f"{len(self.bad):,} of {self.rows:,} rows can't be used, the first is {self.bad[0]}; mend them, or map"
                " names with --columns"
            )


def read_flat(path: str, columns: Mapping[str, str], now: datetime) -> SearchLog:
    """A log with a row for each item that was shown; `columns` are its names by ours (COLUMNS, OPTIONAL).

    Raises:
        DataError: it can't be read, or a name isn't ours.
    """
    if unknown := set(columns) - {*COLUMNS, *OPTIONAL}:
        raise DataError(
            f"--columns: {min(map(str, unknown))!r} is none of {', '.join((*COLUMNS, *OPTIONAL))}; use these as keys"
        )
    names = {name: columns.get(name, name) for name in (*COLUMNS, *OPTIONAL)}
    found, requests = SearchLog(), {}

    def read(row: Row) -> None:
        given = {name: row.values.get(other) for name, other in names.items()}
        for name in ("request_id", "query", "item_id"):
            if given[name] in (None, ""):
                raise ValueError(f"{names[name]} is missing")
        at, position = _time(given["at"], now), _position(given["position"])
        clicked = _truth(given["clicked"], names["clicked"])
        request_id, text = str(given["request_id"]), None if given["text"] is None else str(given["text"])
        if request_id not in requests:
            requests[request_id] = _impression(request_id, str(given["query"]), at, given["user"])
            requests[request_id]["model_version"] = str(given["model_version"] or FOREIGN)
        item = {"item_id": str(given["item_id"]), "text": text, "position": position, "score": None}
        requests[request_id]["items"].append(item)
        if clicked:
            found.events.append(_event("click", requests[request_id], item["item_id"], at))

    found.take(path, "--log", read)
    for one in requests.values():
        one["items"].sort(key=lambda item: item["position"])
    found.impressions = list(requests.values())
    return found


def read_ubi(queries: str, events: str, now: datetime) -> SearchLog:
    """User Behavior Insights: a file of queries with the hits that were shown, and one of events.

    Actions other than ACTIONS, such as those of a mouse, are left out.

    Raises:
        DataError: they can't be read.
    """
    found, requests = SearchLog(), {}

    def read_query(row: Row) -> None:
        given = row.values
        hits = given.get("query_response_hit_ids")
        if not given.get("query_id") or not given.get("user_query") or not isinstance(hits, list) or not hits:
            raise ValueError("query_id, user_query or query_response_hit_ids is missing")
        at = _time(given.get("timestamp"), now)
        one = _impression(str(given["query_id"]), str(given["user_query"]), at, given.get("client_id"))
        one["items"] = [
            {"item_id": str(hit), "text": None, "position": position, "score": None}
            for position, hit in enumerate(hits)
        ]
        requests[one["request_id"]] = one

    def read_event(row: Row) -> None:
        given = row.values
        kind = ACTIONS.get(str(given.get("action_name")))
        if kind is None:
            return
        item = _inside(_inside(given.get("event_attributes"), "object"), "object_id")
        impression = requests.get(str(given.get("query_id")))
        if impression is None or item in (None, ""):
            raise ValueError("query_id is of no query, or event_attributes.object.object_id is missing")
        found.events.append(_event(kind, impression, str(item), _time(given.get("timestamp"), now)))

    found.take(queries, "--ubi-queries", read_query)
    found.take(events, "--ubi-events", read_event)
    found.impressions = list(requests.values())
    return found


def groups(rows: list[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    """Rows, so many at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _impression(request_id: str, query: str, at: datetime, user: Any) -> dict[str, Any]:
    own = {"request_id": request_id, "query": normalise_query(query), "model_version": FOREIGN, "at": at, "items": []}
    return {**own, "user": user_digest(str(user)) if user else None, "swap": None, "propensity": 1.0}


def _event(kind: str, impression: Mapping[str, Any], item_id: str, at: datetime) -> dict[str, Any]:
    """An event that is the same whenever it is imported."""
    request_id = impression["request_id"]
    event_id = digest("imported", kind, request_id, item_id, at.isoformat() if kind == "dwell" else "")
    known = {"event_id": event_id, "event": kind, "item_id": item_id, "request_id": request_id, "at": at}
    return {**known, "user": impression["user"]}


def _inside(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, dict) else None


def _position(value: Any) -> int:
    try:
        position = int(value)
    except (TypeError, ValueError, OverflowError):
        position = -1
    if not 0 <= position <= MOST_POSITION:
        raise ValueError(f"position is {value!r}, no whole number from 0")
    return position


def _truth(value: Any, name: str) -> bool:
    word = "" if value is None else str(value).strip().lower()
    if word not in TRUE | FALSE:
        raise ValueError(f"{name} is {value!r}, neither 1 nor 0")
    return word in TRUE


def _time(value: Any, now: datetime) -> datetime:
    """A time, in ISO 8601 or in seconds or milliseconds since 1970; `now` where there is none."""
    if value in (None, ""):
        return now
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return in_utc(datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC))
        return in_utc(datetime.fromisoformat(str(value)))
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"time is {value!r}, neither ISO 8601 nor seconds since 1970") from error
