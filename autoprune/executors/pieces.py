"""Cuts a batch of plans into pieces for workers, where little of what the plans share is lost.

A piece is some plans on a range of whole micro-batches. Cutting between micro-batches is free: plans share nothing
across them. Cutting between plans costs the sublayers that both sides then run; it is done at branches of the trie that
the plans form, and only as far as the block runs stay within `SLACK` of the uncut batch. All of this depends on nothing
but the plans, the windows and the number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import accumulate, pairwise

from autoprune.space import Plan, SublayerPlan
from autoprune.trie import common, trie_order

SLACK = 0.05  # block runs above those of the uncut batch
HEAD = 0.3  # what a plan pays for logits and scoring, relative to running all its sublayers
FIXED = 0.2  # of a sublayer's time, however little it keeps
PIECE = 0.01  # what a piece costs by itself, relative to a worker's share
DOUBT = 0.1  # the weights are guesses: without smaller pieces at the end one worker waits for the other
FINEST = 4  # ranges of windows for a worker, at most
CAPS = (1.4, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25)  # largest piece, of a share


@dataclass(frozen=True)
class Piece:
    """Positions in the batch of plans, and a half-open range of windows."""

    plans: tuple[int, ...]
    windows: tuple[int, int]


def runs(plans: Sequence[Plan]) -> int:
    """Sublayer runs of the plans in one pass over one micro-batch."""
    ordered = [plans[i] for i in trie_order(plans)]
    shared = [0, *(common(a, b) for a, b in pairwise(ordered))]
    return sum(sum(not s.gone for s in p.sublayers[depth:]) for p, depth in zip(ordered, shared, strict=True))


def cut(plans: Sequence[Plan], windows: tuple[int, int], sequences: int, workers: int) -> list[Piece]:
    """The pieces of a batch, the largest first; `sequences` windows make a micro-batch.

    Of all ways to cut, the one with which `workers` equally fast workers, each taking the next piece when it is free,
    are likely to be done first.
    """
    if workers < 2 or not plans:
        return [Piece(tuple(range(len(plans))), windows)] if plans else []
    trie = _Trie(plans)
    groupings: dict[tuple[tuple[int, int], ...], None] = {((0, len(plans)),): None}
    groupings |= {tuple(g): None for g in (trie.groups(c / workers) for c in CAPS) if g is not None}
    ranges = _ranges(windows, sequences, FINEST * workers)
    overhead = PIECE * trie.weight(0, len(plans)) * (windows[1] - windows[0]) / workers
    ways = [(_weights(trie, grouping, spans), grouping, spans) for grouping in groupings for spans in ranges]
    weights, grouping, spans = min(ways, key=lambda way: _end(way[0], workers, overhead))
    pieces = [Piece(tuple(trie.order[a:b]), span) for a, b in grouping for span in spans]
    return [piece for _, piece in sorted(zip(weights, pieces, strict=True), key=lambda way: -way[0])]


class _Trie:
    """Plans in trie order with what each costs after its predecessor, and alone."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.order = trie_order(plans)
        ordered = [plans[i] for i in self.order]
        shared = [0, *(common(a, b) for a, b in pairwise(ordered))]
        # spaces hand out the same again and again, and to hash one costs more than to look at it
        distinct = {id(s): s for p in plans for s in p.sublayers}
        largest = _largest(distinct.values())
        weight = {number: _weight(s, largest) for number, s in distinct.items()}
        weights = [list(map(weight.__getitem__, map(id, p.sublayers))) for p in ordered]
        head = HEAD * max(1.0, sum(weights[0]))
        self.lost = [
            len(w[:d]) - w[:d].count(0.0) for w, d in zip(weights, shared, strict=True)
        ]  # by a cut before it
        self.runs = sum(len(w) - w.count(0.0) for w in weights) - sum(self.lost)
        alone = [sum(w) + head for w in weights]
        after = [sum(w[d:]) + head for w, d in zip(weights, shared, strict=True)]
        self._until = [0.0, *accumulate(after)]
        self._start = [own - until for own, until in zip(alone, self._until[1:], strict=True)]

    def weight(self, start: int, stop: int) -> float:
        """Relative time of the plans start..stop in order, as a piece; it grows with every plan on either side."""
        return self._start[start] + self._until[stop]

    def groups(self, cap: float) -> list[tuple[int, int]] | None:
        """Ranges of plans, none heavier than `cap` of the whole, that lose the least; None when that is too much."""
        count, limit = len(self.order), cap * self.weight(0, len(self.order))
        most, start, until = SLACK * self.runs, self._start, self._until
        chosen = [0] * (count + 1)  # where the last group of the best way to cut so many plans starts
        waiting: deque[tuple[int, int]] = (
            deque()
        )  # (runs lost, start): starts that a later plan may choose, best first
        least = 0
        for stop in range(1, count + 1):
            value = least + (self.lost[stop - 1] if stop > 1 else 0)
            while waiting and waiting[-1][0] > value:
                waiting.pop()
            waiting.append((value, stop - 1))
            while len(waiting) > 1 and start[waiting[0][1]] + until[stop] > limit:
                waiting.popleft()
            least, chosen[stop] = waiting[0]
            if least > most:
                return None
        found, stop = [], count
        while stop:
            found.append((chosen[stop], stop))
            stop = chosen[stop]
        return found[::-1]


def _weights(
    trie: _Trie, grouping: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[float]:
    """Of every group of plans on every range of windows."""
    groups = [trie.weight(start, stop) for start, stop in grouping]
    return [weight * (last - first) for weight in groups for first, last in spans]


def _ranges(windows: tuple[int, int], sequences: int, most: int) -> list[list[tuple[int, int]]]:
    """Ways to cut windows between micro-batches into equal parts: one part, two, … `most`."""
    first, last = windows
    batches = -(-(last - first) // sequences)
    found = {}
    for parts in range(1, min(batches, most) + 1):
        marks = [first + sequences * (batches * k // parts) for k in range(parts)]
        found[tuple(marks)] = list(pairwise([*marks, last]))
    return list(found.values())


def _end(weights: Sequence[float], workers: int, overhead: float) -> float:
    """When the last of the workers is done, and some more when the pieces are large."""
    free = [0.0] * workers  # a heap
    for weight in sorted(weights, reverse=True):
        heapreplace(free, free[0] + weight + overhead)
    return max(free) + DOUBT * max(weights)


def _largest(sublayers: Iterable[SublayerPlan]) -> dict[str, float]:
    """The largest value of each setting."""
    found: dict[str, float] = {}
    for sublayer in sublayers:
        for name, value in sublayer.settings:
            if isinstance(value, (int, float)):
                found[name] = max(found.get(name, 0.0), float(value))
    return found


def _weight(sublayer: SublayerPlan, largest: dict[str, float]) -> float:
    if sublayer.gone:
        return 0.0
    shares = [float(v) / largest[n] for n, v in sublayer.settings if largest.get(n)]
    return FIXED + (1 - FIXED) * (sum(shares) / len(shares) if shares else 1.0)
