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

LISTS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field(
            "items",
            pa.list_(
                pa.struct(
                    [
                        pa.field("item_id", pa.string()),
                        pa.field("text", pa.string()),
                        pa.field("label", pa.float32()),
                        pa.field("score", pa.float32()),
                        pa.field("logits", pa.list_(pa.float32())),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)
"""Candidate lists: the items of one query, with judgement, teacher score and logits where there are any."""


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
