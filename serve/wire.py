"""Between callers' JSON and what the endpoint works with: bodies in, answers and errors out."""

import json
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from rankstill.text import encodable, render_item
from serve.api import Document, Event, Feedback
from serve.guard import problem

JSON = "application/json"
Model = TypeVar("Model", bound=BaseModel)


def best_first(values_N: NDArray[Any], count: int | None) -> list[int]:
    """Places of the largest values, largest first; of equals the one that came first."""
    return np.argsort(-values_N, kind="stable")[:count].tolist()


def id_of(document: Document) -> str:
    """A document's own id, or nothing."""
    own = document.get("id") if isinstance(document, dict) else None
    return encodable(str(own)) if isinstance(own, str | int) and not isinstance(own, bool) else ""


def text_of(document: Document, fields: list[str] | tuple[str, ...], asked: bool) -> str:
    """What of a document is scored: its text, or its fields; `asked` where the caller named these."""
    if isinstance(document, str):
        return encodable(document)
    return encodable(render_item(document, fields if asked or "text" not in document else ["text"]))


async def read_json(request: Request) -> Any:
    """A body.

    Raises:
        HTTPException: it is no JSON.
    """
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "body: no JSON; send an object with query and texts, or documents") from error


def validated(model: type[Model], given: Any) -> Model:
    """What came in, as the route wants it.

    Raises:
        RequestValidationError: it is something else.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def encoded(answer: Any, strict: bool = False) -> bytes:
    """As JSON; `strict` where callers' own objects are in it, of which JSON can't hold all.

    Raises:
        HTTPException: it can't.
    """
    if not strict:
        return orjson.dumps(answer)
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        message = "documents can't be returned: they hold NaN, infinity, half a character or too deep nesting"
        raise HTTPException(422, message) from error


UNWRITTEN = ("body", "str", Event.__name__, Feedback.__name__)
"""Parts of an error's place that no caller wrote: a part of the request, members of unions."""


async def on_invalid(request: Request, error: Exception) -> Response:
    """A body that isn't JSON, or whose fields are unknown or mistyped."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in UNWRITTEN)
    given, message = first.get("input"), first["msg"].removeprefix("Value error, ")
    shown = given[:100] if isinstance(given, str) else given
    value = f" is {shown!r}" if isinstance(given, str | int | float) else ""
    told = f"{place}{value}: {message}" if place else message
    if first["type"] == "json_invalid" or not (place or first["type"] == "value_error"):
        told = "body: no JSON object; send one, with content-type: application/json"
    return problem(422, told, request.url.path)


async def on_problem(request: Request, error: Exception) -> Response:
    """What a route refused."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    if error.status_code == 405:  # Starlette names the methods of the first route of a path alone, and none of files
        routes = [one for one in request.app.routes if one.matches(request.scope)[0] is not Match.NONE]
        methods = {method for one in routes for method in getattr(one, "methods", ())} or {"GET", "HEAD"}
        headers = {"Allow": ", ".join(sorted(methods))}
    if error.detail == "There was an error parsing the body":  # FastAPI's, where it isn't JSON's syntax
        what = "body: no JSON that can be read; send UTF-8, not nested too deeply, no number of thousands of digits"
        return problem(422, what, request.url.path)
    return problem(error.status_code, str(error.detail), request.url.path, headers)
