"""Sends an endpoint what no client should, and looks for server errors and for what an answer should not tell.

    python -m tests.benchmarks.malformed --url http://127.0.0.1:8000 [--requests 5000] [--seed 0]

Broken JSON, wrong types, endless numbers, NaN, odd unicode, deep nesting, unknown fields, odd headers and methods,
bodies that are too large, end early or come a byte at a time. Prints counts by status; fails on any 5xx but 503 and
504, on a connection that is dropped, and on an answer that holds a path or a trace.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

PATHS = ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/feedback", "/v1/catalogue", "/v1/models", "/nowhere")
GOOD: dict[str, Any] = {"model": "x", "query": "red drill", "documents": ["a", {"title": "b"}], "top_n": 2}
EVENT: dict[str, Any] = {"event_id": "e", "event": "click", "item_id": "i", "request_id": "r"}
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", " ", "\x00", "\ud800", "\u202e" * 50, "x" * 5000,
    [], {}, [[]], [None], [1], {"a": {"b": []}}, ["\ud83d\ude00" * 300], {"id": None}, {"id": ["x"]}, {"text": 3},
)  # fmt: skip
PLACES = {str(Path.home()), str(Path.cwd()), sys.prefix, sys.base_prefix, tempfile.gettempdir()}
LEAKS = re.compile("|".join(["Traceback", "site-packages", r"\.py\b", "RayTaskError", *map(re.escape, PLACES)]))
AT_ONCE = 8

Body = bytes | Callable[[], AsyncIterator[bytes]]


class Sender:
    """Makes requests up."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def request(self) -> tuple[str, str, dict[str, bytes], Body]:
        """Method, path, headers and body."""
        draw = self._draw
        method = draw.choices(["POST", "GET", "PUT", "OPTIONS", "DELETE"], [90, 4, 2, 2, 2])[0]
        path = draw.choices(PATHS, [35, 20, 20, 15, 4, 3, 3])[0]
        return (
            method,
            path + draw.choice(["", "", "", "?query=%ff%00", "?count=-1&query="]),
            self._headers(),
            self._body(),
        )

    def _headers(self) -> dict[str, bytes]:
        odd: dict[str, list[bytes]] = {
            "x-timeout-ms": [b"0", b"-5", b"1e9", b"soon", b"9" * 400, "\u0663".encode()],
            "x-request-id": [b"", b"a" * 5000, b"\xff\xfe", b"<script>"],
            "x-model-version": [b"shop/999", b"../../etc/passwd", b"\xe9"],
            "x-user": [b"\xff", b"u" * 5000],
            "traceparent": [b"0" * 3000, b"\xff"],
            "authorization": [b"Bearer", b"Bearer \xff", b"Basic x", b"Bearer " + b"k" * 5000],
            "content-type": [b"text/plain", b"application/xml", b"application/json; charset=utf-7", b"", b"\xff"],
            # what Serve reads
            "x-request-timeout-seconds": [b"1e-9", b"nan", b"\xff"],
            "x-request-disconnect-disabled": [b"?1", b"\xff"],
            "x-session-id": [b"\xff"],
            "serve_multiplexed_model_id": [b"other", b"\xff"],
        }
        chosen = self._draw.sample(sorted(odd), self._draw.choice([0, 0, 1, 2]))
        return {"content-type": b"application/json", **{name: self._draw.choice(odd[name]) for name in chosen}}

    def _body(self) -> Body:
        draw = self._draw
        kind = draw.randrange(8)
        if kind == 0:
            return draw.randbytes(draw.randrange(400))
        text = json.dumps(self._tree())
        if kind == 1:
            return text[: draw.randrange(len(text))].encode()
        if kind == 2:
            place = draw.randrange(len(text))
            return text[:place].encode() + draw.randbytes(3) + text[place:].encode()
        if kind == 3:
            return draw.choice(
                [b"[" * 100_000, b'{"query":' * 5000, b"1" * 10_000, b'"' + b"\\u0000" * 2000 + b'"', b""]
            )
        return text.encode()

    def _tree(self) -> Any:
        """A body of which one thing, or a few, are wrong."""
        draw = self._draw
        tree = dict(draw.choice([GOOD, EVENT, {"query": "a", "texts": ["b"]}, {"events": [EVENT]}]))
        for _ in range(draw.randrange(1, 4)):
            name = draw.choice([*tree, "rank_fields", "max_tokens_per_doc", "user", "unknown", "\ud800"])
            if draw.random() < 0.2:
                tree.pop(name, None)
            else:
                tree[name] = draw.choice(VALUES)
        return draw.choice(VALUES) if draw.random() < 0.05 else tree


async def slow() -> AsyncIterator[bytes]:
    """A body that comes a byte at a time."""
    for byte in json.dumps(GOOD).encode():
        yield bytes([byte])
        await asyncio.sleep(0.01)


async def huge() -> AsyncIterator[bytes]:
    """100 MB."""
    for _ in range(100):
        yield b"x" * 1_000_000


async def main_() -> int:
    """Send; returns how many answers were wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sender, counts, wrong = Sender(arguments.seed), Counter[str](), 0
    room = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=60) as client:

        async def send(method: str, path: str, headers: dict[str, bytes], body: Body) -> None:
            nonlocal wrong
            async with room:
                data = body if isinstance(body, bytes) else body()
                try:
                    answer = await client.request(method, arguments.url + path, content=data, headers=headers)
                    text, status = answer.text, answer.status_code
                except (httpx.NetworkError, httpx.ProtocolError) as error:
                    if body is huge:  # which a server may stop listening to
                        counts["closed while too large"] += 1
                        return
                    text, status = repr(error), 0
                counts[str(status)] += 1
                leaks = bool(LEAKS.search(text)) and path.split("?")[0] != "/openapi.json"
                if status in (0, 500, 501, 502) or leaks:
                    wrong += 1
                    print(method, path, headers, str(body)[:300], status, text[:300], file=sys.stderr)

        odd: list[Body] = [slow, huge, slow, huge]
        tasks = [send("POST", "/v1/rerank", {"content-type": b"application/json"}, body) for body in odd]
        await asyncio.gather(*tasks, *(send(*sender.request()) for _ in range(arguments.requests)))
    print(json.dumps({"sent": arguments.requests + len(odd), "statuses": dict(sorted(counts.items())), "wrong": wrong}))
    return wrong


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main_()) else 0)
