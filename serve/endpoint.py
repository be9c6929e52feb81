"""The HTTP routes: what comes in is checked, sent to a version's rankers, and answered in the caller's protocol."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from rankstill.served import Served, Version
from rankstill.text import encodable, normalise
from serve.answers import rerank_answer, tei_answer
from serve.api import (
    Document,
    Feedback,
    FeedbackAnswer,
    OneOrMany,
    Problem,
    RerankAnswer,
    RerankTei,
    RerankV1,
    RerankV2,
)
from serve.asking import Rankers
from serve.catalogue import Catalogue
from serve.guard import DOCS, Guard, Shedding, write_access_log
from serve.keys import read_keys
from serve.loop_routes import LoopRoutes
from serve.messages import ScoreRequest
from serve.observed import Observed
from serve.ranking import Ranked, rank
from serve.recording import Kept, Recording
from serve.traffic import Traffic
from serve.watch import Watch
from serve.wire import (
    JSON,
    encoded,
    id_of,
    on_invalid,
    on_problem,
    read_json,
    text_of,
    validated,
)

PAGE = Path(__file__).with_name("web") / "index.html"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": text}
    for code, text in {
        400: "Empty query or documents.",
        401: "No key, or an unknown one.",
        403: "A key without the role that this needs.",
        404: "Unknown model.",
        408: "The body took too long to arrive.",
        413: "Too many documents, or too large a body.",
        422: "An unknown or mistyped field.",
        429: "Queues are full; try again after Retry-After seconds.",
        503: "No replica is ready.",
        504: "The time that the caller allowed, by the header x-timeout-ms in milliseconds, is over.",
    }.items()
}

_HEADERS: list[dict[str, Any]] = [
    {"name": name, "in": "header", "schema": {"type": "string"}, "description": text}
    for name, text in (
        ("x-user", "Who asks, where the body doesn't say; stays with a version."),
        ("x-model-version", "The version that is to answer; for admins."),
    )
]
"""What rankings may have in their headers."""


@dataclass(frozen=True)
class EndpointSettings:
    """What the ingress needs to know, whichever versions it serves."""

    max_documents: int
    max_body_bytes: int
    timeout_ms: float
    max_wait_ms: float
    keys: str
    """File of API keys."""
    kept: Kept
    swap_rate: float = 0.0
    """Share of the answers in which two neighbours are put in random order."""
    open: bool = False
    """Whether callers of other machines are answered without keys."""
    access_log: str = ""
    """File of the access log."""
    catalogue: str = ""
    """File of items that the page searches."""
    fields: tuple[str, ...] = ("title",)
    """Their fields that make up a text."""
    root: str = ""
    """Storage root, which has the files of the loop."""


class Endpoint:
    """The routes of one ingress."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._keys = read_keys(settings.keys)
        self._observed = Observed()
        if settings.access_log:
            write_access_log(settings.access_log)
        self._catalogue = Catalogue(settings.catalogue, settings.fields) if settings.catalogue else None
        self._traffic: Traffic | None = None
        self._recording = Recording(settings.kept, self._observed)
        self._watch = Watch(lambda: self._recording.recorder)
        self._rankers = Rankers(self._observed, self._watch, settings.max_wait_ms / 1000)
        self._draw = random.Random()  # noqa: S311 (no secret)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve other versions, or the same with other weights; requests under way are not touched."""
        traffic = Traffic(Served.model_validate(user_config))
        if self._traffic:
            traffic.keep(self._traffic)
        self._rankers.know(traffic.served.versions)
        self._traffic = traffic

    def api(self) -> Guard:
        """The ASGI application."""
        api = FastAPIOffline(
            "/docs", None, title="rankstill", description="Reranks products for a query.", version="1", static_url=DOCS
        )
        heard = {"parameters": _HEADERS}
        answer: dict[str, Any] = {"response_model": RerankAnswer, "responses": _PROBLEMS, "openapi_extra": heard}
        api.post("/v1/rerank", **answer)(self.rerank_v1)
        api.post("/v2/rerank", **answer)(self.rerank_v2)
        bodies = {
            "schema": {"anyOf": [{"$ref": f"#/components/schemas/{one.__name__}"} for one in (RerankV1, RerankTei)]}
        }
        extra = {"requestBody": {"content": {JSON: bodies}, "required": True}, **heard}
        api.post("/rerank", responses=_PROBLEMS, openapi_extra=extra)(self.rerank)
        api.post("/v1/feedback", response_model=FeedbackAnswer, responses=_PROBLEMS)(self.feedback)
        api.get("/v1/models")(self.models)
        loop = LoopRoutes(self._settings.root, lambda: self.traffic.served.name)
        api.get("/v1/loop", responses={503: _PROBLEMS[503]})(loop.show)
        api.post("/v1/loop", responses={code: _PROBLEMS[code] for code in (400, 403, 404, 422)})(loop.want)
        api.get("/healthz")(self.healthz)
        api.get("/readyz", responses={503: _PROBLEMS[503]})(self.readyz)
        for path, route in (("/healthz", self.healthz), ("/readyz", self.readyz)):  # as some load balancers ask
            api.head(path, include_in_schema=False)(route)
        api.get("/metrics", response_class=PlainTextResponse)(self.metrics)
        api.get("/v1/catalogue", responses={404: _PROBLEMS[404], 422: _PROBLEMS[422]})(self.catalogue)
        api.get("/", include_in_schema=False)(self.page)
        api.add_exception_handler(RequestValidationError, on_invalid)
        api.add_exception_handler(HTTPException, on_problem)
        described = api.openapi

        def openapi() -> dict[str, Any]:
            tree = described()
            tree["components"]["schemas"]["RerankTei"] = RerankTei.model_json_schema()
            tree["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            tree["security"] = [{}, {"key": []}]
            return tree

        api.openapi = openapi
        settings = self._settings
        shedding = Shedding(self._overloaded, self._free)
        return Guard(api, self._keys, settings.max_body_bytes, self._observed, settings.open, shedding)

    def _overloaded(self, waiting: int) -> float:
        """Seconds after which to ask again, where nobody who may answer takes more than `waiting` now; else 0."""
        if self._traffic is None:
            return 0.0
        refusals = [self._rankers.full(one, waiting) for one in self._traffic.served.versions if one.weight]
        if not all(refusals):
            return 0.0
        self._observed.rankings.labels(self._traffic.champion.version, "overloaded").inc()
        return max(0.01, *(one.seconds for one in refusals if one))

    def _free(self, waiting: int) -> float:
        """Rankings that one of those who answer takes after `waiting`; infinite where that isn't known."""
        versions = self._traffic.served.versions if self._traffic else ()
        return max((self._rankers.free(one, waiting) for one in versions if one.weight), default=math.inf)

    @property
    def traffic(self) -> Traffic:
        """Who answers.

        Raises:
            HTTPException: nobody yet.
        """
        if self._traffic is None:
            raise HTTPException(503, "no version is served yet; try again shortly")
        return self._traffic

    async def rerank_v1(self, request: Request, body: RerankV1) -> Response:
        """Rank documents for a query (Cohere v1, with Jina's additions)."""
        ranked = await self._rank(request, body, body.documents, body.rank_fields, body.user or "")
        return rerank_answer(body, ranked, request.state.request_id, echo=body.return_documents, protocol="1")

    async def rerank_v2(self, request: Request, body: RerankV2) -> Response:
        """Rank documents for a query (Cohere v2)."""
        ranked = await self._rank(request, body, list(body.documents), None, "")
        return rerank_answer(body, ranked, request.state.request_id, echo=False, protocol="2")

    async def rerank(self, request: Request) -> Response:
        """Rank texts for a query in the form of text-embeddings-inference; without `texts`, as `/v1/rerank`."""
        given = await read_json(request)
        if isinstance(given, dict) and not given.keys() & {"texts", "documents"}:
            raise HTTPException(422, "neither texts nor documents is given; give one")
        if not isinstance(given, dict) or "texts" not in given:
            return await self.rerank_v1(request, validated(RerankV1, given))
        body = validated(RerankTei, given)
        ranked = await self._rank(request, body, list(body.texts), None, "")
        return tei_answer(body, ranked)

    async def feedback(self, body: OneOrMany) -> Response:
        """Take what shoppers did, one event or many; it is on disk when this answers."""
        events = body.events if isinstance(body, Feedback) else [body]
        stored = await self._recording.events(events)
        return Response(encoded({"stored": stored, "known": len(events) - stored}), media_type=JSON)

    async def models(self) -> dict[str, Any]:
        """The versions that are served, and how they do, as all ingresses together saw it."""
        counts = await self._watch.seen()
        told = [{**one, "observed": counts.get(one["id"], {})} for one in self.traffic.told()]
        return {"object": "list", "data": told}

    async def healthz(self) -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    async def readyz(self) -> dict[str, str]:
        """Whether a ranker replica of the champion is loaded and warm."""
        champion = self.traffic.champion
        await self._rankers.ready(champion)
        return {"status": "ready", "model": champion.version}

    async def catalogue(
        self, query: Annotated[str, Query(max_length=1000)], count: Annotated[int, Query(ge=1, le=1000)] = 30
    ) -> Response:
        """Items of the catalogue that share words with a query, BM25's best first."""
        if self._catalogue is None:
            raise HTTPException(404, "this endpoint has no catalogue (serve.catalogue); send documents of your own")
        return Response(encoded({"items": self._catalogue.search(query, count)}), media_type=JSON)

    async def page(self) -> Response:
        """A page to try it."""
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    async def metrics(self) -> Response:
        """Numbers for Prometheus."""
        return Response(self._observed.text(), media_type="text/plain; version=0.0.4")

    async def _rank(
        self,
        request: Request,
        body: RerankV1 | RerankV2 | RerankTei,
        documents: list[Document],
        rank_fields: list[str] | None,
        user: str,
    ) -> Ranked:
        """A request's documents in order, by the version that answers it."""
        self._check(body.query, documents, "texts" if isinstance(body, RerankTei) else "documents")
        version, by_name = self._version(request, getattr(body, "model", None), user)
        wanted = self._request(request, body, documents, rank_fields or version.fields, bool(rank_fields))
        request.state.told.update(version=version.version, documents=len(documents))
        scores = await self._rankers.score(version, wanted, self.traffic)
        for other in self.traffic.shadows(version):
            self._rankers.copy(other, wanted, scores)
        swap_rate = 0.0 if by_name else self._settings.swap_rate  # to learn from; those who compare want what it is
        ranked = rank(version, scores, getattr(body, "top_n", None), swap_rate, self._draw)
        if not by_name:  # or those who compare versions would look like shoppers who click nothing
            self._recording.impression(request.state.request_id, user, wanted, ranked)
        return ranked

    def _check(self, query: str, documents: list[Document], name: str) -> None:
        most = self._settings.max_documents
        if not normalise(query):
            raise HTTPException(400, "query is empty; give at least one word")
        if not documents:
            raise HTTPException(400, f"{name} is empty; give at least one")
        if len(documents) > most:
            raise HTTPException(413, f"{name} has {len(documents)} entries; send at most {most} a request")

    def _version(self, request: Request, model: str | None, user: str) -> tuple[Version, bool]:
        """The version that answers, the caller's or one that is asked for by those who may; and whether it was that."""
        traffic, served = self.traffic, self.traffic.served
        forced = request.headers.get("x-model-version", "")
        name = forced or model or served.name
        found = served.find(name)
        whoever = (served.name, served.alias)
        if name in whoever and (found is None or not forced):
            return traffic.choose(user or request.headers.get("x-user", "")), False
        if found is None:
            names = ", ".join(map(repr, traffic.names))
            raise HTTPException(404, f"model {name[:200]!r} is not served here; ask for one of {names}")
        if not request.state.caller.may("admin"):
            raise HTTPException(403, f"model {name!r}: this key may not choose a version; ask for {served.name!r}")
        return found, True

    def _request(
        self,
        request: Request,
        body: RerankV1 | RerankV2 | RerankTei,
        documents: list[Document],
        fields: list[str] | tuple[str, ...],
        asked: bool,
    ) -> ScoreRequest:
        texts = [text_of(document, fields, asked) for document in documents]
        ids = [id_of(document) for document in documents]
        allowed = self._settings.timeout_ms
        given = request.headers.get("x-timeout-ms", "")
        if given:
            if not given.isascii() or not given.isdigit() or not int(given[:12]) > 0:
                raise HTTPException(422, f"header x-timeout-ms is {given[:40]!r}; give milliseconds, 1 or more")
            allowed = min(allowed, int(given[:12]))
        return ScoreRequest(
            query=encodable(body.query),
            texts=texts,
            ids=ids if any(ids) else [],
            max_tokens_per_doc=getattr(body, "max_tokens_per_doc", None),
            seconds=max(0.001, allowed / 1000 - (time.monotonic() - request.state.began)),
        )
