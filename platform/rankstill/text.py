"""Item fields to model input text, the identity of a pair, and what else comes in as tables keep it."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

SEPARATOR = " | "
"""Between the fields of an item's text."""

_BLANKS = r"[\s\x00-\x1f\x7f]+"
_BLANK_RUN = re.compile(_BLANKS)


def normalise(text: str) -> str:
    """Unicode NFKC, runs of blanks and control characters as one space, trimmed."""
    return _BLANK_RUN.sub(" ", unicodedata.normalize("NFKC", text)).strip(" ")


def encodable(text: str) -> str:
    """The text with what UTF-8 can't hold (half of a surrogate pair) replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def normalise_query(query: str) -> str:
    """`normalise`, in lower case: what a shopper types differs in case but not in meaning."""
    return normalise(query).lower()


def render_item(item: Mapping[str, object], fields: Sequence[str]) -> str:
    """The text of one item: its non-empty fields, normalised and joined in the given order."""
    parts = (normalise(str(item[field])) for field in fields if item.get(field) is not None)
    return SEPARATOR.join(part for part in parts if part)


def normalise_column(column: str) -> pl.Expr:
    """`normalise` over a Polars string column."""
    return pl.col(column).str.normalize("NFKC").str.replace_all(_BLANKS, " ").str.strip_chars(" ")


def render_columns(fields: Iterable[str]) -> pl.Expr:
    """`render_item` over Polars string columns."""
    parts = [normalise_column(field) for field in fields]
    present = [pl.when(part != "").then(part) for part in parts]
    return pl.concat_str(present, separator=SEPARATOR, ignore_nulls=True)


def digest(*parts: str, size: int = 16) -> str:
    """BLAKE2b of the parts as hexadecimal, `size` bytes; different splits of one text differ."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def user_digest(user: str) -> str:
    """What stands for a shopper's key wherever it is kept."""
    return digest("user", user)


def made_id(text: str) -> str:
    """What stands for an item without an id: by its text."""
    return f"text-{digest(text, size=8)}"


def pair_id(query: str, text: str) -> str:
    """128-bit identity of a pair, from the normalised query and the rendered item text."""
    return digest(query, text)


EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
MOST_POSITION = 2**31 - 1
"""Of an item that was shown: what tables hold of it."""


def in_utc(at: datetime) -> datetime:
    """A time as tables keep it; one without a zone is in UTC.

    Raises:
        ValueError: it is before 1970, or after 2199.
    """
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    if not EARLIEST <= at < LATEST:
        raise ValueError("no time from 1970 to 2199; give one in ISO 8601")
    return at.astimezone(UTC)
