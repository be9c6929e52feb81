"""Wire models of the ranking endpoint: Cohere's rerank, v1 (with Jina's additions) and v2, TEI's, and feedback."""

import math
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from rankstill.text import MOST_POSITION, in_utc

Document = str | dict[str, Any]
"""A text, or an object of item fields; `id` is that of an item whose vectors may be known ahead."""


def _whole(value: Any) -> Any:
    """3 for 3.0, as JSON doesn't tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=1), WHOLE]
# What is empty is answered 400, not 422 as what has another type.
Query = Annotated[str, Field(json_schema_extra={"minLength": 1})]
NOT_EMPTY = Field(json_schema_extra={"minItems": 1})


class RerankV1(BaseModel):
    """`POST /v1/rerank`. Fields that it doesn't know are ignored, as clients of several vendors send their own."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "example": {
                "query": "cordless drill 18v",
                "documents": ["Bolt 18V cordless drill driver", "Drill bit set, 20 pieces"],
                "top_n": 1,
            }
        },
    )

    model: str | None = None
    """Name of the model, or of a version that is to answer; or nothing."""
    query: Query
    """What the shopper typed."""
    documents: Annotated[list[Document], NOT_EMPTY]
    """Candidates, in any order."""
    top_n: Count | None = None
    """How many results to return; all where absent."""
    return_documents: bool = False
    """Whether each result repeats its document."""
    rank_fields: list[str] | None = None
    """Fields of object documents that make up their text; "text" or the student's own fields where absent."""
    max_tokens_per_doc: Count | None = None
    """Tokens of a document that count; the student's own limit holds too."""
    user: str | None = None
    """Who asks; the same one gets the same version of the model."""


class RerankV2(BaseModel):
    """`POST /v2/rerank`. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    """Name of the model."""
    query: Query
    """What the shopper typed."""
    documents: Annotated[list[str], NOT_EMPTY]
    """Candidates, in any order."""
    top_n: Count | None = None
    """How many results to return; all where absent."""
    max_tokens_per_doc: Count | None = None
    """Tokens of a document that count; the student's own limit holds too."""
    priority: Annotated[int, WHOLE] = 0
    """Accepted, and without effect."""


class RerankTei(BaseModel):
    """`POST /rerank` with `texts`: Hugging Face's text-embeddings-inference."""

    model_config = ConfigDict(strict=True)

    query: Query
    """What the shopper typed."""
    texts: Annotated[list[str], NOT_EMPTY]
    """Candidates, in any order."""
    raw_scores: bool = False
    """Whether scores are the model's own and not in [0, 1]."""
    return_text: bool = False
    """Whether each result repeats its text."""
    truncate: bool | None = None
    """Ignored: texts that are too long are truncated always."""


class Event(BaseModel):
    """What a shopper did with an item."""

    model_config = ConfigDict(extra="forbid")

    event_id: Annotated[str, Field(min_length=1, max_length=200)]
    """Identity of the event; one that came before is not stored again."""
    event: Literal["click", "add_to_cart", "purchase", "dwell", "reject"]
    """What happened."""
    item_id: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """With which item; one without an id is told by request_id and position."""
    request_id: Annotated[str, Field(max_length=200)] | None = None
    """Of the ranking that showed it."""
    query: Annotated[str, Field(max_length=10_000)] | None = None
    """What the shopper had typed, where there is no request_id."""
    position: Annotated[int, Field(strict=True, ge=0, le=MOST_POSITION), WHOLE] | None = None
    """At which the item was shown, from 0."""
    value: Annotated[float, Field(strict=True)] | None = None
    """Seconds of a dwell, price of a purchase."""
    user: Annotated[str, Field(max_length=200)] | None = None
    """Key of the shopper."""
    at: Annotated[datetime, AfterValidator(in_utc)] | None = None
    """When; the time of arrival where absent."""

    @model_validator(mode="after")
    def _belongs_somewhere(self) -> "Event":
        if not self.request_id and not self.query:
            raise ValueError("neither request_id nor query is given; give one, so that the event belongs to a ranking")
        if self.item_id is None and (self.position is None or not self.request_id):
            raise ValueError("neither item_id nor position with request_id is given; give one, to tell the item")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError("value isn't finite; give a number")
        return self


class Feedback(BaseModel):
    """`POST /v1/feedback`: events at once."""

    model_config = ConfigDict(extra="forbid")

    events: Annotated[list[Event], Field(min_length=1, max_length=1000)]
    """In any order."""


OneOrMany = Annotated[
    Annotated[Feedback, Tag("Feedback")] | Annotated[Event, Tag("Event")],
    Discriminator(lambda given: "Feedback" if isinstance(given, dict) and "events" in given else "Event"),
]
"""A body of feedback; what is wrong with it is told of the one that it is meant as."""


class FeedbackAnswer(BaseModel):
    """What became of events; they are on disk when this is sent."""

    stored: int
    """New ones."""
    known: int
    """Those that were stored before."""


class LoopOrder(BaseModel):
    """`POST /v1/loop`: what is to change; what is absent stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    paused: bool = False
    """Whether nothing new is begun, and what is tried stays as it is."""
    pinned: bool = False
    """Whether the champion stays, whatever is found."""
    order: Literal["promote", "rollback"] | None = None
    """What is to be done next, once: promote the challenger, or roll back (which withdraws what is being tried)."""


class Result(BaseModel):
    """One ranked document."""

    index: int
    """Its place in the request."""
    relevance_score: float
    """In [0, 1], larger is better."""
    id: str | None = None
    """The document's own id, where it has one."""
    document: dict[str, Any] | None = None
    """The document, where it was asked for."""


class Usage(BaseModel):
    """What the request took."""

    total_tokens: int
    """Tokens that the model read."""


class RerankAnswer(BaseModel):
    """Answer of both versions; best document first."""

    id: str
    """Identity of this answer."""
    model: str
    """Name and version of the model, such as shop/3."""
    model_version: str
    """The same."""
    request_id: str
    """Identity of this answer, for feedback; the caller's own x-request-id where that was sent."""
    results: list[Result]
    """The ranking."""
    usage: Usage
    """What the request took."""
    meta: dict[str, Any]
    """Version of the protocol and units billed."""
    truncated: int
    """How many documents were longer than the model reads."""


class Problem(BaseModel):
    """Body of every error."""

    message: str
    """What is wrong, in one line."""
