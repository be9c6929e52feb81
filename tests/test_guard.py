"""What stands before the routes, without Ray: an application in this process."""

import asyncio
import json
import logging
import math
import time

import httpx
import pytest
from fastapi import FastAPI, Request

from serve import gate, guard
from serve.guard import Guard, Shedding
from serve.keys import Key, Keys, hash_of
from serve.observed import Observed

RANK, EVENTS, SLOW = "rk_rank", "rk_events", "rk_slow"
KEYS = Keys(
    (
        Key(name="rank", sha256=hash_of(RANK)),
        Key(name="events", sha256=hash_of(EVENTS), roles=("feedback",)),
        Key(name="slow", sha256=hash_of(SLOW), requests_per_second=0.5),
    )
)


def guarded(keys: Keys = KEYS, limit: int = 1000, open_: bool = False) -> tuple[Guard, Observed]:
    api = FastAPI()
    observed = Observed()

    async def echo(request: Request) -> dict:
        request.state.told["documents"] = 3
        state = request.state
        return {"caller": state.caller.name, "request_id": state.request_id, "body": len(await request.body())}

    for path in ("/v1/rerank", "/rerank", "/v1/feedback"):
        api.post(path)(echo)
    for path in ("/healthz", "/docs", "/docs/files/page.js", "/docs/other"):
        api.get(path)(lambda: {"status": "ok"})
    return Guard(api, keys, limit, observed, open_), observed


def ask(
    app: Guard, path: str = "/v1/rerank", method: str = "POST", address: str = "127.0.0.1", **given
) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=(address, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **given)

    return asyncio.run(main())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_what_would_be_refused_is_refused_before_its_body_is_read():
    api, waits = FastAPI(), [0.0]
    guard = Guard(api, KEYS, 1000, Observed(), shedding=Shedding(lambda _: waits[0]))

    async def ranked() -> str:
        return "ranked"

    for path in ("/v1/rerank", "/v1/feedback"):
        api.post(path)(ranked)
    statuses = []
    for wait, path, headers in (
        (0.0, "/v1/rerank", {}),
        (2.4, "/v1/rerank", {}),
        (2.4, "/v1/rerank", {"x-model-version": "shop/2"}),  # who asks for another version may find it free
        (2.4, "/v1/feedback", {}),
    ):
        waits[0] = wait
        key = EVENTS if path == "/v1/feedback" else RANK
        answer = ask(guard, path, headers={**bearer(key), **headers})
        statuses.append((answer.status_code, answer.headers.get("retry-after")))
    assert statuses == [(200, None), (429, "3"), (200, None), (200, None)]


def test_haproxy_hears_how_many_requests_may_be_under_way(monkeypatch):
    free, waiting = math.inf, []

    async def told(*paths: str, **headers: str) -> list[str | None]:
        shedding = Shedding(free=lambda count: waiting.append(count) or free)
        app = Guard(guarded()[0]._app, Keys(()), 1000, Observed(), shedding=shedding)
        app._here = 5  # others
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            answers = await asyncio.gather(*(client.post(path, headers=headers) for path in paths))
            assert (app._here, app._gate.here) == (5, 0)
            return [one.headers.get("x-takes") for one in answers]

    assert asyncio.run(told("/v1/rerank")) == [None]
    free = 40.7
    assert asyncio.run(told("/v1/rerank")) == ["46"]
    assert asyncio.run(told("/v1/feedback")) == [None]
    assert asyncio.run(told("/v1/rerank", **{"x-model-version": "shop/2"})) == [None]
    assert set(waiting) == {0}
    monkeypatch.setattr(Guard, "_shed", lambda *_: guard.problem(429, "full", "", {}))
    free = 0.0
    assert asyncio.run(told("/v1/rerank")) == ["5"]


def test_while_rankings_come_late_no_more_are_let_in(monkeypatch):
    monkeypatch.setattr(gate, "FEW", 1)

    async def run(received: float) -> tuple[httpx.Response, ...]:
        answer = asyncio.Event()

        async def hold() -> str:
            await answer.wait()
            return "ranked"

        api = FastAPI()
        api.post("/v1/rerank")(hold)
        api.post("/v1/feedback")(lambda: "stored")
        app = Guard(api, Keys(()), 1000, Observed())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:

            def rank() -> asyncio.Task[httpx.Response]:
                headers = {"x-received": str(int(received * 1e6))}
                return asyncio.create_task(client.post("/v1/rerank", headers=headers))

            app._gate.began = -1000.0
            answer.set()
            await client.post("/v1/rerank", headers={"x-received": str(int(time.time() * 1e6))})
            answer.clear()
            first = rank()
            await asyncio.sleep(0.05)
            second = rank()
            other = await client.post("/v1/feedback")
            answer.set()
            return await first, await second, other

    first, second, other = asyncio.run(run(time.time() - 10))
    assert (first.status_code, second.status_code, other.status_code) == (200, 429, 200)
    assert second.headers["retry-after"] == "1"
    assert {one.status_code for one in asyncio.run(run(time.time() + 10))} == {200}


def test_what_haproxy_refused_is_counted():
    app, observed = guarded()
    for told, key in (("3", RANK), ("40", "rk_no"), ("", RANK), ("\xb2", RANK), ("4", RANK)):
        ask(app, headers={**bearer(key), "x-refused": told.encode("latin-1")})
    assert "rankstill_refused_total 7.0" in observed.text().decode()


@pytest.mark.parametrize("received", ["", "soon", "\xb2"])
def test_how_long_a_request_waited_before(received):
    assert guard.waited_before({"x-received": received}) == 0
    told = {"x-received": str(int((time.time() - 3) * 1e6))}
    assert guard.waited_before(told) == pytest.approx(3, abs=1)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/rerank", {}, 401),
        ("/v1/rerank", bearer("rk_other"), 401),
        ("/v1/rerank", {"authorization": "Basic cms="}, 401),
        ("/v1/rerank", bearer(RANK), 200),
        ("/v1/rerank", {"x-api-key": RANK}, 200),
        ("/v1/rerank", bearer(EVENTS), 403),
        ("/v1/feedback", bearer(RANK), 403),
        ("/v1/feedback", bearer(EVENTS), 200),
        ("/nowhere", {}, 401),
        ("/nowhere", bearer(RANK), 404),
    ],
)
def test_who_may_do_what(path, headers, status):
    answer = ask(guarded()[0], path, headers=headers)
    assert answer.status_code == status
    assert RANK not in answer.text
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/docs", 200), ("/docs/files/page.js", 200), ("/docs/other", 401)]
)
def test_health_and_description_need_no_key(path, status):
    assert ask(guarded()[0], path, "GET").status_code == status


def test_nobody_needs_a_key_where_there_are_none():
    assert ask(guarded(Keys(()))[0]).json()["caller"] == "anyone"


@pytest.mark.parametrize("address", ["10.0.0.7", "2001:db8::7", "testclient", ""])
def test_without_keys_other_machines_are_answered_only_where_that_is_wanted(address):
    answer = ask(guarded(Keys(()))[0], address=address)
    assert answer.status_code == 403
    assert "only this machine's own callers are answered" in answer.json()["message"]
    assert ask(guarded(Keys(()), open_=True)[0], address=address).status_code == 200
    assert ask(guarded()[0], address=address, headers=bearer(RANK)).status_code == 200
    assert ask(guarded(Keys(()))[0], address="::1").status_code == 200


def test_a_caller_over_its_rate_is_told_when_to_come_again():
    app, _ = guarded()
    answers = [ask(app, headers=bearer(SLOW)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert int(answers[1].headers["retry-after"]) == 2


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused(declared):
    async def chunks():
        for _ in range(5):
            yield b"x" * 400

    app, _ = guarded()
    content = b"x" * 2000 if declared else chunks()
    answer = ask(app, headers=bearer(RANK), content=content)
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["message"]
    tei = ask(app, "/rerank", headers=bearer(RANK), content=content if declared else chunks())
    assert (tei.status_code, tei.json()["error_type"]) == (413, "Validation")
    assert tei.json()["error"] == answer.json()["message"]
    assert ask(app, headers=bearer(RANK), content=b"x" * 1000).json()["body"] == 1000


def test_a_body_that_never_ends_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)

    async def chunks():
        yield b"x"
        await asyncio.sleep(30)

    answer = ask(guarded()[0], headers=bearer(RANK), content=chunks())
    assert answer.status_code == 408


def test_teis_route_has_teis_errors():
    body = ask(guarded()[0], "/rerank", headers=bearer("rk_no")).json()
    assert body["error"] == body["message"]
    assert "error_type" in body
    assert "error_type" not in ask(guarded()[0]).json()


def test_a_message_is_json_whatever_was_sent():
    body = json.loads(bytes(guard.problem(422, "field '\ud800' " + "x" * 5000, "").body))
    assert body["message"].startswith("field '?'")
    assert len(body["message"]) == guard.LONGEST_MESSAGE


def test_identity_and_trace_pass_through():
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    answer = ask(guarded()[0], headers={**bearer(RANK), **trace})
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["traceparent"] == trace["traceparent"]
    mine = ask(guarded()[0], headers={**bearer(RANK), "x-request-id": "mine-7"})
    assert mine.json()["request_id"] == "mine-7"
    twice = [*bearer(RANK).items(), ("x-request-id", "first"), ("x-request-id", "second")]
    assert ask(guarded()[0], headers=twice).json()["request_id"] == "first"
    odd = ask(guarded()[0], headers={**bearer(RANK), "x-request-id": "a b"})
    assert len(odd.json()["request_id"]) == 32


def test_a_line_of_the_log_tells_who_and_how_long_but_no_texts(caplog):
    app, observed = guarded()
    with caplog.at_level(logging.INFO, logger="rankstill.access"):
        ask(app, headers=bearer(RANK), content=b"the shopper's words")
        ask(app, headers=bearer("rk_no"))
    first, second = (json.loads(record.message) for record in caplog.records)
    assert (first["status"], first["caller"], first["route"], first["documents"]) == (200, "rank", "/v1/rerank", 3)
    assert (second["status"], second["caller"]) == (401, "")
    assert "words" not in caplog.text
    assert RANK not in caplog.text
    text = observed.text().decode()
    assert 'rankstill_requests_total{route="/v1/rerank",status="200"} 1.0' in text
    assert 'rankstill_requests_total{route="/v1/rerank",status="401"} 1.0' in text
