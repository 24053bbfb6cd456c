"""The corners of a space: what its costs come to where genes are at their first or last options (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.space import Candidate, Gene, OptionGene
from autoprune.walk import Ints


@dataclass(frozen=True)
class Corners:
    """`least`: the lowest of every cost. `tops`: last options of the genes that lower a cost when raised, else 0."""

    least: Mapping[str, float]
    tops: Ints


def corners(
    genes: Sequence[Gene], cost: Callable[[Candidate], Mapping[str, float]], settings: Sequence[str]
) -> Corners:
    """Of the smallest candidate, and of the smallest but for the genes of one of these settings.

    Without settings the smallest has the least of everything. Whoever drops prompt tokens may decode for longer.
    """
    tops = np.array([len(g.options) - 1 if isinstance(g, OptionGene) else 0 for g in genes])
    ends = [np.array([getattr(g, "setting", "") == name for g in genes]) * tops for name in settings]
    least = dict(cost(Candidate((0,) * len(genes))))
    dear = np.zeros(len(genes), dtype=np.int64)
    lowest = dict(least)
    for end in ends:
        own = cost(Candidate(tuple(end.tolist())))
        dear += end * any(own[m] < least[m] for m in least)
        lowest = {m: min(lowest[m], own[m]) for m in lowest}
    return Corners(lowest, dear)
