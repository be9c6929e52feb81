"""Wire models of the ranking endpoint: Cohere's rerank, v1 (with Jina's additions) and v2."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Document = str | dict[str, Any]
"""A text, or an object of item fields."""


class RerankV1(BaseModel):
    """`POST /v1/rerank`. Fields that it doesn't know are ignored, as clients of several vendors send their own."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": "cordless drill 18v",
                "documents": ["Bolt 18V cordless drill driver", "Drill bit set, 20 pieces"],
                "top_n": 1,
            }
        }
    )

    model: str | None = None
    """Name of the model; any name of the served one, or nothing."""
    query: str
    """What the shopper typed."""
    documents: list[Document]
    """Candidates, in any order."""
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many results to return; all where absent."""
    return_documents: bool = False
    """Whether each result repeats its document."""
    rank_fields: list[str] | None = None
    """Fields of object documents that make up their text; "text" or the student's own fields where absent."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a document that count; the student's own limit holds too."""


class RerankV2(BaseModel):
    """`POST /v2/rerank`. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Name of the model."""
    query: str
    """What the shopper typed."""
    documents: list[str]
    """Candidates, in any order."""
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many results to return; all where absent."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a document that count; the student's own limit holds too."""
    priority: int = 0
    """Accepted, and without effect."""


class Result(BaseModel):
    """One ranked document."""

    index: int
    """Its place in the request."""
    relevance_score: float
    """In [0, 1], larger is better."""
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
