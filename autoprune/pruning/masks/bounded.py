"""Tensors made on demand and kept within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class Bounded:
    """The least recently used leave first; the newest always stays."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What is held under a key, made first when it is not."""
        found = self._held.get(key)
        if found is None:
            found = self._held[key] = make()
            self.bytes += found.nbytes
            while self.bytes > self._limit and len(self._held) > 1:
                self.bytes -= self._held.popitem(last=False)[1].nbytes
        self._held.move_to_end(key)
        return found
