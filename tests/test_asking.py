"""What the ingress makes of rankers that fail."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from rankstill.served import Served, Version
from serve import asking
from serve.asking import Rankers
from serve.messages import Refusal, ScoreRequest
from serve.observed import Observed
from serve.traffic import Traffic
from serve.watch import Watch

VERSION = Version(version="shop/1", app="shop-1", fields=("title",))
REQUEST = ScoreRequest("q", ["a", "b"])


class Broken:
    """A handle to rankers that raise something, which comes over gRPC as it is."""

    async def remote(self, *_):
        raise ZeroDivisionError


@pytest.fixture
def failing(monkeypatch):
    watch = Watch(lambda: None)
    sent = []
    monkeypatch.setattr(watch, "_add", lambda version, **counts: sent.append((version, counts)))
    rankers = Rankers(Observed(), watch, 1.0)
    rankers._handles[VERSION.app] = SimpleNamespace(score=Broken(), ready=Broken())
    return SimpleNamespace(rankers=rankers, sent=sent, traffic=Traffic(Served(name="shop", versions=(VERSION,))))


def test_whatever_a_ranker_raises_is_told_and_counted(failing):
    for _ in range(30):
        with pytest.raises(HTTPException) as told:
            asyncio.run(failing.rankers.score(VERSION, REQUEST, failing.traffic))
        assert told.value.status_code == 503
    assert failing.sent == [("shop/1", {"failed": 1})] * 30
    assert failing.traffic.taken_out(VERSION)
    with pytest.raises(HTTPException) as told:
        asyncio.run(failing.rankers.ready(VERSION))
    assert told.value.status_code == 503


@pytest.mark.parametrize(("alive", "seconds", "status"), [(False, 0.2, 503), (True, 0.2, 504), (False, 0.05, 504)])
def test_where_no_ranker_says_anything_to_anybody_none_is_there(failing, monkeypatch, alive, seconds, status):
    monkeypatch.setattr(asking, "READY_SECONDS", 0.1)

    class Slow:
        async def remote(self, request):
            if request.query == "mine" or not alive:
                await asyncio.sleep(10)
            return Refusal("overloaded", 1.0)

    failing.rankers._handles[VERSION.app] = SimpleNamespace(score=Slow())

    async def asked():
        mine, other = (
            asyncio.create_task(failing.rankers.score(VERSION, replace(REQUEST, query=query, seconds=seconds), traffic))
            for query in ("mine", "other's")
        )
        with suppress(HTTPException):
            await other
        await mine

    traffic = failing.traffic
    with pytest.raises(HTTPException) as told:
        asyncio.run(asked())
    assert told.value.status_code == status
    assert bool(failing.sent) == (status == 503)


def test_a_copy_that_fails_is_counted_and_disturbs_nobody(failing):
    async def copied():
        failing.rankers.copy(VERSION, REQUEST, None)
        await asyncio.gather(*failing.rankers._tasks)

    asyncio.run(copied())
    assert failing.sent == [("shop/1", {"copy_failed": 1})]
