import asyncio
import math
import time
from contextlib import AsyncExitStack

import pytest

from serve.gate import FEW, Gate


async def enter(gate: Gate, number: int, passed: list[int]) -> None:
    async with gate.passed(0.0):
        passed.append(number)


def test_one_passes_in_each_turn_and_in_order():
    async def run() -> list[int]:
        gate, passed, counts = Gate(), [], []
        tasks = [asyncio.create_task(enter(gate, number, passed)) for number in range(4)]
        while not all(task.done() for task in tasks):
            before = len(passed)
            await asyncio.sleep(0)
            counts.append(len(passed) - before)
        assert passed == [0, 1, 2, 3]
        assert gate.here == 0
        return counts

    assert max(asyncio.run(run())) == 1


def test_who_is_alone_does_not_wait():
    async def run() -> None:
        gate, passed = Gate(), []
        for number in range(3):
            with pytest.raises(StopIteration):
                enter(gate, number, passed).send(None)
            assert (gate.waiting, gate.here) == (0, 0)
            await asyncio.sleep(0)
        assert passed == [0, 1, 2]

    asyncio.run(run())


def test_who_went_away_takes_no_turn():
    async def run() -> list[int]:
        gate, passed = Gate(), []
        tasks = [asyncio.create_task(enter(gate, number, passed)) for number in range(4)]
        await asyncio.sleep(0)
        assert gate.waiting == 3
        tasks[1].cancel()
        tasks[3].cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)
        assert (gate.waiting, gate.here) == (0, 0)
        await enter(gate, 4, passed)
        return passed

    assert asyncio.run(run()) == [0, 2, 4]


def test_fewer_may_be_here_where_one_was_late_until_there_are_few():
    async def run() -> None:
        gate = Gate()
        gate.began = -1000.0
        async with AsyncExitStack() as stack:
            assert gate.free == math.inf
            for _ in range(99):
                await stack.enter_async_context(gate.passed(0.0))
            assert (gate.limit, gate.free) == (math.inf, math.inf)
            await stack.enter_async_context(gate.passed(1.0))
            assert (gate.here, gate.limit, gate.free) == (100, 95, 0)
            async with gate.passed(1.0):
                assert gate.limit == 95, "as many are here as were allowed"
            async with gate.passed(0.0):
                assert 95 < gate.limit < 96
        async with gate.passed(0.0):
            assert (gate.here, gate.limit) == (1, math.inf)
        async with gate.passed(1.0):
            assert (gate.limit, gate.free) == (FEW, FEW - 1)

    asyncio.run(run())


def test_late_is_what_took_longer_than_the_quickest_of_late(monkeypatch):
    ahead = 100.0  # seconds by which the clock of who sent them is

    async def late(gate: Gate, seconds: float) -> bool:
        async with gate.passed(seconds - ahead):
            await asyncio.sleep(0)
            return gate.limit < math.inf

    async def run() -> None:
        gate = Gate()
        gate.began = -1000.0
        assert [await late(gate, seconds) for seconds in (7.0, 0.0, 7.0, 0.01)] == [False, False, True, False]
        now = time.monotonic()
        for window, expected in ((1, True), (2, False)):  # the clock was set: 7 seconds are what there is now
            monkeypatch.setattr(time, "monotonic", lambda window=window: now + 61.0 * window)
            assert await late(gate, 7.0) == expected

    asyncio.run(run())


def test_who_waited_for_the_process_to_start_is_not_late():
    async def run() -> None:
        gate = Gate()
        for waited in (0.0, -1.0, 5.0, -1.0, 1.0):
            async with gate.passed(waited):
                assert gate.limit == math.inf

    asyncio.run(run())
