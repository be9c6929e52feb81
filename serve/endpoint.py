"""The HTTP routes: what comes in is checked, sent to the rankers, and answered in the caller's protocol."""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from rankstill.text import encodable, normalise, render_item
from serve.api import Document, Problem, RerankAnswer, RerankV1, RerankV2
from serve.body import BoundedBody
from serve.ranker import ScoreRequest, Scores

READY_SECONDS = 2.0
RETRY_AFTER_SECONDS = 1

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": text}
    for code, text in {
        400: "Empty query or documents.",
        404: "Unknown model.",
        413: "Too many documents, or too large a body.",
        422: "An unknown or mistyped field.",
        429: "Queues are full; try again after Retry-After seconds.",
        503: "No replica is ready.",
    }.items()
}


@dataclass(frozen=True)
class EndpointSettings:
    """What the ingress needs to know."""

    version: str
    """Name of the served version, such as shop/3."""
    aliases: tuple[str, ...]
    """Other names that callers may use for it."""
    fields: tuple[str, ...]
    """Item fields that make up an item's text."""
    max_documents: int
    max_body_bytes: int


class Endpoint:
    """The routes of one served version."""

    def __init__(self, rankers: DeploymentHandle, settings: EndpointSettings) -> None:
        self._rankers = rankers
        self._settings = settings

    def api(self) -> BoundedBody:
        """The ASGI application."""
        api = FastAPI(title="rankstill", description="Reranks products for a query.", version="1")
        answer: dict[str, Any] = {"response_model": RerankAnswer, "responses": _PROBLEMS}
        api.post("/v1/rerank", **answer)(self.rerank_v1)
        api.post("/v2/rerank", **answer)(self.rerank_v2)
        api.get("/v1/models")(self.models)
        api.get("/healthz")(self.healthz)
        api.get("/readyz", responses={503: _PROBLEMS[503]})(self.readyz)
        api.add_exception_handler(RequestValidationError, _on_invalid)
        api.add_exception_handler(HTTPException, _on_problem)
        return BoundedBody(api, self._settings.max_body_bytes)

    async def rerank_v1(self, body: RerankV1) -> JSONResponse:
        """Rank documents for a query (Cohere v1, with Jina's additions)."""
        return await self._rerank(body, rank_fields=body.rank_fields, echo=body.return_documents, protocol="1")

    async def rerank_v2(self, body: RerankV2) -> JSONResponse:
        """Rank documents for a query (Cohere v2)."""
        return await self._rerank(body, rank_fields=None, echo=False, protocol="2")

    async def models(self) -> dict[str, Any]:
        """The models that can be asked for."""
        names = (self._settings.version, *self._settings.aliases)
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}

    async def healthz(self) -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    async def readyz(self) -> JSONResponse:
        """Whether a ranker replica is loaded and warm."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._rankers.ready.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            raise HTTPException(503, "no ranker replica is ready; try again shortly") from error
        return JSONResponse({"status": "ready", "model": self._settings.version})

    async def _rerank(
        self, body: RerankV1 | RerankV2, rank_fields: list[str] | None, echo: bool, protocol: str
    ) -> JSONResponse:
        self._check(body)
        texts = [self._text(document, rank_fields) for document in body.documents]
        scores = await self._score(ScoreRequest(encodable(body.query), texts, body.max_tokens_per_doc))
        best = np.argsort(-scores.relevance_N, kind="stable")[: body.top_n]
        results: list[dict[str, Any]] = [
            {"index": int(place), "relevance_score": float(scores.relevance_N[place])} for place in best
        ]
        if echo:
            for result in results:
                document = body.documents[result["index"]]
                result["document"] = {"text": document} if isinstance(document, str) else document
        answer = {
            "id": str(uuid.uuid4()),
            "model": self._settings.version,
            "results": results,
            "usage": {"total_tokens": scores.tokens},
            "meta": {"api_version": {"version": protocol}, "billed_units": {"search_units": 1}},
            "truncated": scores.truncated,
        }
        try:
            return JSONResponse(answer)
        except (ValueError, RecursionError) as error:
            message = "documents can't be returned: they hold NaN, infinity, half a character or too deep nesting"
            raise HTTPException(422, message) from error

    def _check(self, body: RerankV1 | RerankV2) -> None:
        settings = self._settings
        if body.model and body.model not in (settings.version, *settings.aliases):
            raise HTTPException(404, f"model {body.model!r} is not served here; ask for {settings.version!r}")
        if not normalise(body.query):
            raise HTTPException(400, "query is empty; give at least one word")
        if not body.documents:
            raise HTTPException(400, "documents is empty; give at least one")
        if len(body.documents) > settings.max_documents:
            message = f"documents has {len(body.documents)} entries; send at most {settings.max_documents} a request"
            raise HTTPException(413, message)

    def _text(self, document: Document, rank_fields: list[str] | None) -> str:
        if isinstance(document, str):
            return encodable(document)
        fields = rank_fields or (["text"] if "text" in document else self._settings.fields)
        return encodable(render_item(document, fields))

    async def _score(self, request: ScoreRequest) -> Scores:
        try:
            return await self._rankers.score.remote(request)
        except BackPressureError as error:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise HTTPException(429, "queues are full; try again later", headers=headers) from error
        except (RayError, RayServeException) as error:
            raise HTTPException(503, "no ranker replica could answer; try again shortly") from error


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    """A body that isn't JSON, or whose fields are unknown or mistyped."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"message": f"{place or 'body'}: {first['msg']}"}, status_code=422)


async def _on_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": str(error.detail)}, status_code=error.status_code, headers=error.headers)
