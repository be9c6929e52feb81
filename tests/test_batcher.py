import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import tokens_of_lengths

from rankstill.cross_encoder import TokenisedPairs
from serve.batcher import Batcher, Overloaded, TooLate, cut


class Slow:
    """Gives each row its first token's id; takes `seconds` a token, and notes what it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []

    def __call__(self, tokens: TokenisedPairs) -> np.ndarray:
        self.batches.append([int(ids[0]) for ids in tokens.input_ids])
        time.sleep(self.seconds * sum(map(len, tokens.input_ids)))
        return np.array([[ids[0], len(ids)] for ids in tokens.input_ids], dtype=np.float32)


def numbered(numbers: list[int], length: int = 10) -> TokenisedPairs:
    ids = [np.full(length, number, dtype=np.int32) for number in numbers]
    return TokenisedPairs(ids, ids, np.zeros(len(ids), np.bool_))


def run(scenario, compute, budget=100, wait=0.0, longest_wait=10.0, rate=1000.0):
    async def main():
        with ThreadPoolExecutor(1) as executor:
            return await scenario(Batcher(compute, executor, budget, wait, longest_wait, rate))

    return asyncio.run(main())


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def test_rows_come_back_in_their_order_whatever_their_lengths():
    lengths = [3, 50, 7, 120, 3, 40, 1]
    found = run(lambda batcher: batcher.submit(tokens_of_lengths(lengths), soon()), Slow())
    assert found.tolist() == [[row, length] for row, length in enumerate(lengths)]


def test_requests_at_once_share_a_batch_and_get_their_own():
    compute = Slow()

    async def scenario(batcher):
        return await asyncio.gather(*(batcher.submit(numbered([n, n + 1]), soon()) for n in range(0, 10, 2)))

    found = run(scenario, compute, wait=0.05)
    assert [part[:, 0].tolist() for part in found] == [[n, n + 1] for n in range(0, 10, 2)]
    assert len(compute.batches) == 1


def test_what_is_due_first_comes_first():
    compute = Slow(0.001)

    async def scenario(batcher):
        waits = [asyncio.create_task(batcher.submit(numbered([n] * 10), soon(9 - n))) for n in range(5)]
        await asyncio.gather(*waits)

    run(scenario, compute, wait=0.02)
    assert [batch[0] for batch in compute.batches] == [4, 3, 2, 1, 0]


def test_a_giant_request_keeps_no_small_one_waiting():
    """Of the same time to answer: a small one that comes later is due before the giant's later pieces."""
    compute = Slow(0.0005)

    async def scenario(batcher):
        giant = asyncio.create_task(batcher.submit(numbered([0] * 400), soon(9)))
        await asyncio.sleep(0.1)
        await batcher.submit(numbered([1]), soon(9))
        done = giant.done()
        return done, await giant

    done, found = run(scenario, compute, rate=2000.0)
    assert not done
    assert found.shape == (400, 2)
    assert [1] in compute.batches or any(1 in batch for batch in compute.batches[:8])


def test_no_batch_has_more_tokens_than_it_may():
    compute = Slow()

    async def scenario(batcher):
        await asyncio.gather(*(batcher.submit(numbered([n] * (3 + n)), soon()) for n in range(8)))

    run(scenario, compute, budget=70, wait=0.02)
    assert max(map(len, compute.batches)) <= 7
    assert sum(map(len, compute.batches)) == sum(3 + n for n in range(8))


def test_what_is_too_late_is_told_and_not_computed():
    compute = Slow(0.002)

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(numbered([0] * 10), soon()))
        await asyncio.sleep(0.02)
        with pytest.raises(TooLate):
            await batcher.submit(numbered([1]), soon(0.11))
        await first

    run(scenario, compute, rate=1e6)
    assert compute.batches == [[0] * 10]


def test_what_nobody_waits_for_is_not_computed():
    compute = Slow(0.002)

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(numbered([0] * 10), soon()))
        gone = asyncio.create_task(batcher.submit(numbered([1]), soon()))
        await asyncio.sleep(0.02)
        gone.cancel()
        await first
        await batcher.submit(numbered([2]), soon())

    run(scenario, compute)
    assert [batch for batch in compute.batches if 1 in batch] == []


def test_what_would_wait_too_long_is_refused_at_once_and_the_rest_is_answered():
    compute = Slow(0.001)

    async def scenario(batcher):
        waits = [asyncio.create_task(batcher.submit(numbered([n] * 10), soon())) for n in range(20)]
        await asyncio.sleep(0)
        refused = [error for wait in waits if wait.done() and isinstance(error := wait.exception(), Overloaded)]
        found = await asyncio.gather(*waits, return_exceptions=True)
        await batcher.submit(numbered([0]), soon())  # and once the queue is empty all is well again
        return refused, [one for one in found if isinstance(one, np.ndarray)]

    refused, done = run(scenario, compute, longest_wait=0.45)
    assert 3 <= len(done) <= 7
    assert len(done) + len(refused) == 20
    assert all(0.45 < one.seconds < 2 for one in refused)


def test_a_giant_request_has_no_small_one_refused():
    """Only what is due before counts: of the same time to answer, that is the little of the giant that comes first."""
    compute = Slow(0.0005)

    async def scenario(batcher):
        giant = asyncio.create_task(batcher.submit(numbered([0] * 400), soon(9)))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            batcher.check(soon(99))
        small = await batcher.submit(numbered([1]), soon(9))
        assert not giant.done()
        await giant
        return small

    assert run(scenario, compute, longest_wait=0.5, rate=2000.0)[:, 0].tolist() == [1]


def test_a_giant_request_that_can_not_be_done_in_time_behind_another_is_refused():
    """Each alone would be: 600 tokens at 1,000 a second, within a second."""

    async def scenario(batcher):
        giants = [asyncio.create_task(batcher.submit(numbered([n] * 60), soon(1.0))) for n in range(2)]
        return await asyncio.gather(*giants, batcher.submit(numbered([3]), soon(1.0)), return_exceptions=True)

    first, second, small = run(scenario, Slow())
    assert len(first) == 60
    assert isinstance(second, Overloaded)
    assert 0.5 < second.seconds < 0.7
    assert small.tolist() == [[3, 10]]


def test_an_error_reaches_those_it_belongs_to_and_no_other():
    def compute(tokens: TokenisedPairs) -> np.ndarray:
        if any(ids[0] == 3 for ids in tokens.input_ids):
            raise ValueError("three")
        return np.zeros(len(tokens.input_ids))

    async def scenario(batcher):
        with pytest.raises(ValueError, match="three"):
            await batcher.submit(numbered([3]), soon())
        return await batcher.submit(numbered([4]), soon())

    assert run(scenario, compute).shape == (1,)


def test_the_rate_is_learnt():
    async def scenario(batcher):
        for _ in range(30):
            await batcher.submit(numbered([0] * 10), soon())
        return batcher.rate

    assert run(scenario, Slow(0.0001), rate=1e6) == pytest.approx(10_000, rel=0.4)


def test_pieces_are_bounded_and_hold_every_row_once():
    lengths = np.array([5, 300, 7, 7, 60, 2, 90, 41], dtype=np.int64)
    pieces = cut(lengths, 100)
    assert sorted(row for rows in pieces for row in rows.tolist()) == list(range(8))
    assert pieces[0].tolist() == [1]
    assert all(lengths[rows].sum() <= 180 or len(rows) == 1 for rows in pieces)
    assert [rows.tolist() for rows in cut(np.array([4, 4]), 100)] == [[0, 1]]


def test_a_full_batch_waits_at_the_executor_and_others_gather():
    compute, computing, go_on = Slow(), threading.Event(), threading.Event()
    submitted: list[object] = []

    def compute_when_told(tokens: TokenisedPairs) -> np.ndarray:
        computing.set()
        assert go_on.wait(60)
        return compute(tokens)

    class Noted(ThreadPoolExecutor):
        def submit(self, *given, **named):
            submitted.append(given)
            return super().submit(*given, **named)

    async def main():
        with Noted(1) as executor:
            batcher = Batcher(compute_when_told, executor, 100, 0.0, 10.0, 1000.0)
            waits = [asyncio.create_task(batcher.submit(numbered([0] * 10), soon()))]
            while not computing.is_set():
                await asyncio.sleep(0.01)
            waits += [asyncio.create_task(batcher.submit(numbered([n] * 4), soon())) for n in range(1, 4)]
            await asyncio.sleep(0.1)
            early = len(submitted)
            go_on.set()
            return early, [part[:, 0].tolist() for part in await asyncio.gather(*waits)]

    early, found = asyncio.run(main())
    assert (early, len(submitted)) == (2, 3), "of what doesn't fill a batch nothing is taken before its turn"
    assert found == [[0] * 10, *([n] * 4 for n in range(1, 4))]
    assert [len(batch) for batch in compute.batches] == [10, 8, 4]
