import numpy as np
import pytest

from rankstill.vector_cache import VectorCache

SIZE = 2 * 3 * 2
"""Bytes of one key's vectors, [2, 3] in half precision."""


def vectors(*numbers: float) -> np.ndarray:
    return np.stack([np.full((2, 3), number, np.float16) for number in numbers])


def test_what_was_put_is_there():
    cache = VectorCache(10 * SIZE)
    cache.put(["a", "b"], vectors(0.1, 2.0))
    one, none, other = cache.get(["a", "x", "b"])
    assert none is None
    np.testing.assert_allclose(one, 0.1, rtol=1e-3)
    np.testing.assert_array_equal(other, 2.0)
    assert (cache.hits, cache.misses) == (2, 1)
    assert one.base is None, "a view would keep the whole batch"


def test_what_was_used_least_lately_goes_first():
    cache = VectorCache(3 * SIZE)
    cache.put(["a", "b", "c"], vectors(1, 2, 3))
    cache.get(["a"])
    cache.put(["d"], vectors(4))
    assert [one is not None for one in cache.get(["a", "b", "c", "d"])] == [True, False, True, True]
    assert len(cache) == 3


@pytest.mark.parametrize("room", [0, SIZE - 1])
def test_without_room_nothing_is_kept(room):
    cache = VectorCache(room)
    cache.put(["a"], vectors(1))
    assert cache.get(["a"]) == [None]
    assert len(cache) == 0


def test_the_same_twice_takes_room_once():
    cache = VectorCache(2 * SIZE)
    for _ in range(5):
        cache.put(["a", "b"], vectors(1, 2))
    assert len(cache) == 2
