"""What the ingress makes of rankers that fail."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from rankstill.served import Served, Version
from serve.asking import Rankers
from serve.messages import ScoreRequest
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


def test_a_copy_that_fails_is_counted_and_disturbs_nobody(failing):
    async def copied():
        failing.rankers.copy(VERSION, REQUEST, None)
        await asyncio.gather(*failing.rankers._tasks)

    asyncio.run(copied())
    assert failing.sent == [("shop/1", {"copy_failed": 1})]
