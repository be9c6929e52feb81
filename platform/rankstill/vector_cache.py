"""Vectors of texts that were encoded before, up to a number of bytes; what was used least lately goes first."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]


class VectorCache:
    """Vectors, of any shape, by key."""

    def __init__(self, bytes_at_most: int) -> None:
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._left = bytes_at_most
        self._turn = threading.Lock()
        self.hits = self.misses = 0

    def get(self, keys: Sequence[str]) -> list[Vectors | None]:
        """What is known of each key."""
        with self._turn:
            found = [self._kept.get(key) for key in keys]
            for key, one in zip(keys, found, strict=True):
                if one is not None:
                    self._kept.move_to_end(key)
            missing = sum(one is None for one in found)
            self.misses += missing
            self.hits += len(keys) - missing
        return found

    def put(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Keep a vector of each key, and let go of as many others as that takes."""
        with self._turn:
            for key, one in zip(keys, vectors, strict=True):
                if key not in self._kept:
                    self._kept[key] = one.copy()
                    self._left -= self._kept[key].nbytes
            while self._left < 0:
                self._left += self._kept.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._kept)
