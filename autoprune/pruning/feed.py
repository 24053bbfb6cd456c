"""Blocks of ladders on their way from disk or host memory: read ahead by a thread, held within a bound."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

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
ALL = 1 << 62  # experts
AHEAD = 4  # sublayers that the thread is told of; how many it reads is a matter of room


@dataclass(frozen=True)
class _Read:
    """An entry on its way: its bytes, and how many experts of a sublayer it holds."""

    sent: Future[Sent]
    bytes: int
    experts: int


class Feed:
    """Copies of ladder tensors in memory, or on `device`; the ones used longest ago make room.

    Nothing is read twice while it is wanted: what is `expected` is read by a thread, in that order, as far as `room`
    bytes allow. Its mapped source is forgotten at once, so that this is all the memory that ladders take. `stacked`
    names tensors of an FFN whose first dimension counts experts. Blocks that are `resting` are handed out as they are.
    """

    def __init__(
        self,
        full: Mapping[Site, Tensors],
        own: Mapping[Key, Tensors],
        room: int,
        device: torch.device | None = None,
        stacked: frozenset[str] = frozenset(),
        resting: frozenset[int] = frozenset(),
    ) -> None:
        self._resting = resting
        self._stacked, self._experts = stacked, dict[Site, int]()
        self._sources: dict[Key, Tensors] = {(*site, SHARED): tensors for site, tensors in full.items()}
        self._sources |= dict(own)
        self._room, self._link = room, Link(device or torch.device("cpu"))
        self._ranges = Ranges()
        self._held: OrderedDict[Key, _Read] = OrderedDict()
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
        """Bytes of the largest sublayer that is fed, with one option of its own."""
        fed = [key for key in self._sources if key[0] not in self._resting]
        shared = {key[:2]: self.size(key) for key in fed if key[2] == SHARED}
        for key in fed:
            if key[2] != SHARED:
                shared[key[:2]] = max(shared[key[:2]], self.size((*key[:2], SHARED)) + self.size(key))
        return max(shared.values(), default=0)

    def size(self, key: Key) -> int:
        """Bytes of one entry."""
        return _size(self._sources[key])

    def has(self, key: Key) -> bool:
        """Whether there is such an entry."""
        return key in self._sources

    def entries(self) -> Iterator[Key]:
        """All entries."""
        return iter(self._sources)

    def first(self, site: Site, experts: int) -> None:
        """Of a sublayer's experts only the first ones are wanted, until it is dropped."""
        self._experts[site] = experts
        for key in [k for k, read in self._held.items() if k[:2] == site and read.experts < experts]:
            del self._held[key]

    @contextmanager
    def of_a_batch(self) -> Iterator[None]:
        """What is said of `first` experts holds inside; behind it all are wanted, whatever happened."""
        try:
            yield
        finally:
            for site in list(self._experts):
                self.first(site, ALL)
            self._experts.clear()

    def expect(self, keys: Iterator[Key] | list[Key]) -> None:
        """Read these soon, as far as there is room beside what is held."""
        for key in keys:
            if key in self._held or key not in self._sources or key[0] in self._resting:
                continue
            if self._bytes() + _size(self._wanted(key)) > self._room:
                return
            self._read(key)

    def get(self, key: Key) -> Tensors:
        """An entry, waiting for it."""
        if key[0] in self._resting:
            return self._sources[key]
        if key not in self._held:
            self._make_room(_size(self._wanted(key)))
            self._read(key)
        self._held.move_to_end(key)
        started = time.perf_counter()
        found = self._held[key].sent.result().received()
        self.seconds_waited += time.perf_counter() - started
        return found

    def drop(self, block: int, kind: Kind) -> None:
        """A sublayer is not wanted any more."""
        for key in [k for k in self._held if k[:2] == (block, kind)]:
            del self._held[key]
        self._experts.pop((block, kind), None)

    def _read(self, key: Key) -> None:
        source = self._wanted(key)
        size = _size(source)
        self.reads[key] = self.reads.get(key, 0) + 1
        self.bytes_read += size
        experts = self._experts.get(key[:2], ALL)
        self._held[key] = _Read(self._thread.submit(self._copied, source), size, experts)

    def _wanted(self, key: Key) -> Tensors:
        """The source of an entry, with as many experts as are wanted."""
        count = self._experts.get(key[:2])
        if count is None or key[1] != "ffn":
            return self._sources[key]
        return {n: t[:count] if n in self._stacked else t for n, t in self._sources[key].items()}

    def _copied(self, source: Tensors) -> Sent:
        self._ranges.fetch(source.values())
        found = self._link.send(source)
        self._ranges.forget(source.values())
        return found

    def _bytes(self) -> int:
        return sum(read.bytes for read in self._held.values())

    def _make_room(self, wanted: int) -> None:
        while self._held and self._bytes() + wanted > self._room:
            self._held.popitem(last=False)


def _size(tensors: Tensors) -> int:
    return sum(t.nbytes for t in tensors.values())


class DenseBlocks(Mapping[Site, Tensors]):
    """The dense model's own weights by sublayer, fed in the order of its blocks: the next ones are read meanwhile."""

    def __init__(
        self,
        full: Mapping[Site, Tensors],
        room: int,
        device: torch.device,
        resting: frozenset[int] = frozenset(),
    ) -> None:
        self._sites = list(full)
        self._feed = Feed(full, {}, room, device, resting=resting)

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


class MappedBlocks(Mapping[Site, Tensors]):
    """The dense model's own weights by sublayer, mapped: the system reads them as they are used.

    When another sublayer is asked for, the memory of the last one is let go of, unless its block is `resting`.
    """

    def __init__(self, full: Mapping[Site, Tensors], resting: frozenset[int] = frozenset()) -> None:
        self._full, self._resting = full, resting
        self._ranges = Ranges()
        self._last: Site | None = None

    def __getitem__(self, site: Site) -> Tensors:
        if self._last is not None and self._last != site:
            self._ranges.forget(self._full[self._last].values())
        self._last = None if site[0] in self._resting else site
        return self._full[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._full)

    def __len__(self) -> int:
        return len(self._full)


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
