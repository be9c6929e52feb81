"""Column names and pyarrow schemas of every table, and the records that cross a process."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.float32()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("frequency", pa.int64()),
    ]
)
"""One query with one item; `label` is null where nobody judged the pair."""

ITEMS = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("item_id", "text", "source")])
"""Every distinct item text, under the first `item_id` that it was seen with."""

LABELS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("logits", pa.list_(pa.float32())),
        pa.field("labelled_at", pa.timestamp("ms", tz="UTC"), nullable=False),
    ]
)
"""Soft labels of one teacher: its score for each pair, and the logits of grades, worst first, where it gives them."""


def _records(**fields: pa.DataType) -> pa.ListType:
    """A list of records with these fields."""
    return pa.list_(pa.struct([pa.field(name, kind) for name, kind in fields.items()]))


LISTS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field(
            "items",
            _records(
                item_id=pa.string(),
                text=pa.string(),
                label=pa.float32(),
                score=pa.float32(),
                logits=pa.list_(pa.float32()),
                clicks=pa.float32(),
            ),
            nullable=False,
        ),
    ]
)
"""Candidate lists: the items of one query, with judgement, teacher score and logits where there are any, and with the
share of the debiased clicks where shoppers saw them (see `click_targets`)."""

_LOGGED = [
    pa.field("received", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("batch", pa.int64(), nullable=False),
    pa.field("day", pa.string(), nullable=False),
]

EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("query", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("value", pa.float64()),
        pa.field("user", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        *_LOGGED,
    ]
)
"""What shoppers did with items; `user` is a digest. `received` in the group `batch`, whose numbers grow, on `day`."""

IMPRESSIONS = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("user", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field(
            "items",
            _records(item_id=pa.string(), text=pa.string(), position=pa.int32(), score=pa.float64()),
            nullable=False,
        ),
        pa.field("swap", pa.int32()),
        pa.field("propensity", pa.float64(), nullable=False),
        *_LOGGED,
    ]
)
"""What was shown, positions from 0. Where two neighbours were put in random order, `swap` is the upper one's position,
and `propensity` the probability of the order that was shown; else it is 1. `text` is null where only an id was sent."""


@dataclass(frozen=True)
class ProgressEvent:
    """One task moved on by `step` of its `total` units; on its way from a worker to the terminal."""

    task: str
    step: int
    total: int
    unit: str
    fields: dict[str, Any]
    anew: bool = False
    """Whether counting starts anew, as where a worker takes over from one that died."""
