"""What a ranking looks like in each caller's protocol."""

from typing import Any

from starlette.responses import Response

from serve.api import Document, RerankTei, RerankV1, RerankV2
from serve.ranking import Ranked
from serve.wire import JSON, encoded, id_of


def rerank_answer(body: RerankV1 | RerankV2, ranked: Ranked, request_id: str, echo: bool, protocol: str) -> Response:
    """Cohere's form, of version `protocol`; with the documents, where these are to be echoed."""
    relevance_N = ranked.scores.relevance_N
    results: list[dict[str, Any]] = []
    for place in ranked.order:
        document: Document = body.documents[place]
        result: dict[str, Any] = {"index": place, "relevance_score": float(relevance_N[place])}
        if own := id_of(document):
            result["id"] = own
        if echo:
            result["document"] = {"text": document} if isinstance(document, str) else document
        results.append(result)
    answer = {
        "id": request_id,
        "request_id": request_id,
        "model": ranked.version.version,
        "model_version": ranked.version.version,
        "results": results,
        "usage": {"total_tokens": ranked.scores.tokens},
        "meta": {"api_version": {"version": protocol}, "billed_units": {"search_units": 1}},
        "truncated": ranked.scores.truncated,
    }
    return Response(encoded(answer, strict=echo), media_type=JSON)


def tei_answer(body: RerankTei, ranked: Ranked) -> Response:
    """The form of text-embeddings-inference."""
    values = ranked.scores.logits_N if body.raw_scores else ranked.scores.relevance_N
    results = [
        {"index": place, "score": float(values[place]), **({"text": body.texts[place]} if body.return_text else {})}
        for place in ranked.order
    ]
    return Response(encoded(results), media_type=JSON)
