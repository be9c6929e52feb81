import asyncio

import pytest

from serve.gate import Gate


def test_one_passes_in_each_turn_and_in_order():
    async def run() -> list[list[int]]:
        gate, turns = Gate(), []

        async def one(number: int) -> None:
            await gate.enter()
            turns[-1].append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(4)]
        while not all(task.done() for task in tasks):
            turns.append([])
            await asyncio.sleep(0)
        return turns

    turns = asyncio.run(run())
    assert [one for turn in turns for one in turn] == [0, 1, 2, 3]
    assert max(map(len, turns)) == 1


def test_who_is_alone_does_not_wait():
    async def run() -> None:
        gate = Gate()
        for _ in range(3):
            with pytest.raises(StopIteration):
                gate.enter().send(None)
            assert (len(gate), gate.wait) == (0, 0)
            await asyncio.sleep(0)

    asyncio.run(run())


def test_who_went_away_takes_no_turn():
    async def run() -> list[int]:
        gate, passed = Gate(), []

        async def one(number: int) -> None:
            await gate.enter()
            passed.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(4)]
        await asyncio.sleep(0)
        assert (len(gate), gate.wait > 0) == (3, True)
        tasks[1].cancel()
        tasks[3].cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)
        assert (len(gate), gate.wait) == (0, 0)
        await one(4)
        return passed

    assert asyncio.run(run()) == [0, 2, 4]
