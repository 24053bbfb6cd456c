"""Blocks of ladders on their way from disk or host memory: read ahead by a thread, held within a bound."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from autoprune.models.mapped import Ranges
from autoprune.pruning.link import Link, Sent
from autoprune.space import Kind

Site = tuple[int, Kind]
Tensors = dict[str, Tensor]
Key = tuple[
    int, Kind, int
]  # a block, a kind, and an option that has tensors of its own; 0: what all options share
SHARED = 0
AHEAD = 4  # sublayers that the thread is told of; how many it reads is a matter of room


class Feed:
    """Copies of ladder tensors in memory, or on `device`; the ones used longest ago make room.

    Nothing is read twice while it is wanted: what is `expected` is read by a thread, in that order, as far as `room`
    bytes allow. Its mapped source is forgotten at once, so that this is all the memory that ladders take.
    """

    def __init__(
        self,
        full: Mapping[Site, Tensors],
        own: Mapping[Key, Tensors],
        room: int,
        device: torch.device | None = None,
    ) -> None:
        self._sources: dict[Key, Tensors] = {(*site, SHARED): tensors for site, tensors in full.items()}
        self._sources |= dict(own)
        self._room, self._link = room, Link(device or torch.device("cpu"))
        self._ranges = Ranges()
        self._held: OrderedDict[Key, Future[Sent]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "feed")
        self.reads: dict[Key, int] = {}  # telemetry: how often each was read
        self.bytes_read = 0
        self.seconds_waited = 0.0

    @property
    def full(self) -> Mapping[Site, Tensors]:
        """What all options of a site share."""
        return _Shared(self)

    @property
    def own(self) -> Mapping[Key, Tensors]:
        """What an option has for itself."""
        return _Own(self)

    @property
    def largest(self) -> int:
        """Bytes of the largest sublayer, with one option of its own."""
        shared = {key[:2]: self.size(key) for key in self._sources if key[2] == SHARED}
        for key in self._sources:
            if key[2] != SHARED:
                shared[key[:2]] = max(shared[key[:2]], self.size((*key[:2], SHARED)) + self.size(key))
        return max(shared.values(), default=0)

    def size(self, key: Key) -> int:
        """Bytes of one entry."""
        return sum(t.nbytes for t in self._sources[key].values())

    def has(self, key: Key) -> bool:
        """Whether there is such an entry."""
        return key in self._sources

    def entries(self) -> Iterator[Key]:
        """All entries."""
        return iter(self._sources)

    def expect(self, keys: Iterator[Key] | list[Key]) -> None:
        """Read these soon, as far as there is room beside what is held."""
        for key in keys:
            if key in self._held or key not in self._sources:
                continue
            if self._bytes() + self.size(key) > self._room:
                return
            self._read(key)

    def get(self, key: Key) -> Tensors:
        """An entry, waiting for it."""
        if key not in self._held:
            self._make_room(self.size(key))
            self._read(key)
        self._held.move_to_end(key)
        started = time.perf_counter()
        found = self._held[key].result().received()
        self.seconds_waited += time.perf_counter() - started
        return found

    def drop(self, block: int, kind: Kind) -> None:
        """A sublayer is not wanted any more."""
        for key in [k for k in self._held if k[:2] == (block, kind)]:
            del self._held[key]

    def _read(self, key: Key) -> None:
        self.reads[key] = self.reads.get(key, 0) + 1
        self.bytes_read += self.size(key)
        self._held[key] = self._thread.submit(self._copied, self._sources[key])

    def _copied(self, source: Tensors) -> Sent:
        self._ranges.fetch(source.values())
        found = self._link.send(source)
        self._ranges.forget(source.values())
        return found

    def _bytes(self) -> int:
        return sum(self.size(key) for key in self._held)

    def _make_room(self, wanted: int) -> None:
        while self._held and self._bytes() + wanted > self._room:
            self._held.popitem(last=False)


class DenseBlocks(Mapping[Site, Tensors]):
    """The dense model's own weights by sublayer, fed in the order of its blocks: the next ones are read meanwhile."""

    def __init__(self, full: Mapping[Site, Tensors], room: int, device: torch.device) -> None:
        self._sites = list(full)
        self._feed = Feed(full, {}, room, device)

    @property
    def largest(self) -> int:
        """Bytes of the largest sublayer."""
        return self._feed.largest

    def __getitem__(self, site: Site) -> Tensors:
        found = self._feed.get((*site, SHARED))
        at = self._sites.index(site)
        self._feed.expect([(*later, SHARED) for later in self._sites[at + 1 : at + 1 + AHEAD]])
        return found

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


class _Shared(Mapping[Site, Tensors]):
    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __getitem__(self, site: Site) -> Tensors:
        if not self._feed.has((*site, SHARED)):
            raise KeyError(site)
        return self._feed.get((*site, SHARED))

    def __iter__(self) -> Iterator[Site]:
        return iter({key[:2]: None for key in self._feed.entries()})

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Own(Mapping[Key, Tensors]):
    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __getitem__(self, key: Key) -> Tensors:
        if key[2] == SHARED or not self._feed.has(key):
            raise KeyError(key)
        return self._feed.get(key)

    def __iter__(self) -> Iterator[Key]:
        return (key for key in self._feed.entries() if key[2] != SHARED)

    def __len__(self) -> int:
        return len(list(iter(self)))
