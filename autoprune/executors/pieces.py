"""Cuts a batch of plans into pieces for workers, where little of what the plans share is lost.

A piece is some plans on a range of whole micro-batches. Cutting between micro-batches is free: plans share nothing
across them. Cutting between plans costs the sublayers that both sides then run; it is done at branches of the trie that
the plans form, and only as far as the block runs stay within `SLACK` of the uncut batch. All of this depends on nothing
but the plans, the windows and the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    found = [
        _pieces(trie, grouping, ranges)
        for grouping in groupings
        for ranges in _ranges(windows, sequences, FINEST * workers)
    ]
    whole = trie.weight(0, len(plans)) * (windows[1] - windows[0])
    best = min(found, key=lambda ways: _end([w for w, _ in ways], workers, PIECE * whole / workers))
    return [piece for _, piece in sorted(best, key=lambda way: -way[0])]


class _Trie:
    """Plans in trie order with what each costs after its predecessor, and alone."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.order = trie_order(plans)
        ordered = [plans[i] for i in self.order]
        shared = [0, *(common(a, b) for a, b in pairwise(ordered))]
        largest = _largest(plans)
        body = max(1.0, sum(_weight(s, largest) for s in ordered[0].sublayers))
        self.lost = [_runs(p, 0, d) for p, d in zip(ordered, shared, strict=True)]  # by a cut before it
        self.runs = sum(_runs(p, d) for p, d in zip(ordered, shared, strict=True))
        self._alone = [self._cost(p, 0, largest) + HEAD * body for p in ordered]
        self._after = [self._cost(p, d, largest) + HEAD * body for p, d in zip(ordered, shared, strict=True)]

    @staticmethod
    def _cost(plan: Plan, depth: int, largest: dict[str, float]) -> float:
        return sum(_weight(s, largest) for s in plan.sublayers[depth:])

    def weight(self, start: int, stop: int) -> float:
        """Relative time of the plans start..stop in order, as a piece."""
        return self._alone[start] + sum(self._after[start + 1 : stop])

    def groups(self, cap: float) -> list[tuple[int, int]] | None:
        """Ranges of plans, none heavier than `cap` of the whole, that lose the least; None when that is too much."""
        count, limit = len(self.order), cap * self.weight(0, len(self.order))
        best: list[tuple[float, int]] = [(0, 0)]  # runs lost so far, and where the last group starts
        for stop in range(1, count + 1):
            options, heavy = [], 0.0
            for start in range(stop - 1, -1, -1):
                if start < stop - 1 and self._alone[start] + heavy > limit:
                    break
                options.append((best[start][0] + (self.lost[start] if start else 0), start))
                heavy += self._after[start]
            best.append(min(options))
        if best[count][0] > SLACK * self.runs:
            return None
        found, stop = [], count
        while stop:
            found.append((best[stop][1], stop))
            stop = best[stop][1]
        return found[::-1]


def _pieces(
    trie: _Trie, grouping: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]
) -> list[tuple[float, Piece]]:
    """Every group of plans on every range of windows, with its weight."""
    return [
        (trie.weight(start, stop) * (last - first), Piece(tuple(trie.order[start:stop]), (first, last)))
        for start, stop in grouping
        for first, last in ranges
    ]


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
    free = [0.0] * workers
    for weight in sorted(weights, reverse=True):
        at = free.index(min(free))
        free[at] += weight + overhead
    return max(free) + DOUBT * max(weights)


def _runs(plan: Plan, start: int, stop: int | None = None) -> int:
    return sum(not s.gone for s in plan.sublayers[start:stop])


def _largest(plans: Sequence[Plan]) -> dict[str, float]:
    """The largest value of each setting."""
    found: dict[str, float] = {}
    for plan in plans:
        for sublayer in plan.sublayers:
            for name, value in sublayer.settings:
                if isinstance(value, (int, float)):
                    found[name] = max(found.get(name, 0.0), float(value))
    return found


def _weight(sublayer: SublayerPlan, largest: dict[str, float]) -> float:
    if sublayer.gone:
        return 0.0
    shares = [float(v) / largest[n] for n, v in sublayer.settings if largest.get(n)]
    return FIXED + (1 - FIXED) * (sum(shares) / len(shares) if shares else 1.0)
