"""EvoPress's loop (card A2) with offspring that move capacity between any sites: drop, then fill to the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.searchers.checks import at_least, share
from autoprune.searchers.evolution import Evolution, Vary, changes
from autoprune.searchers.problem import Problem, fill
from autoprune.space import Candidate


class EvoPressPlus(Evolution):
    """The stages of evopress; a child lowers some sites, and what that frees is spent on any others.

    offspring: children a generation; survivors: how many pass each stage, the last one becomes the parent;
    windows: fitness windows of each stage, drawn afresh for every generation and stage; swaps: a child lowers
    min(U{1..swaps}, U{1..swaps}) sites; far: share of them that go to any lower option, the others go to the next;
    generations: how many at most, null for as many as the tokens pay for. Published switches (search=evopress) stay
    among sites whose options cost the same, so they never move the split between attention and FFN.
    """

    method = "evopress+"

    def __init__(
        self,
        problem: Problem,
        offspring: int = 64,
        survivors: Sequence[int] = (8, 2, 1),
        windows: Sequence[int] = (1, 4, 16),
        swaps: int = 3,
        far: float = 0.3,
        generations: int | None = None,
    ) -> None:
        super().__init__(problem, offspring, survivors, windows, generations)
        at_least("swaps", swaps, 1)
        share("far", far)
        self._swaps, self._far = swaps, far

    def variations(self) -> Sequence[Vary]:
        """Drop, then fill."""
        return (self._child,)

    def _child(self, rng: np.random.Generator) -> Candidate | None:
        """None when the room could not be spent on another site."""
        values = list(self.parent.indices())
        lowered: set[int] = set()
        for _ in range(changes(rng, self._swaps)):
            lowerable = [g for g, v in enumerate(values) if v > 0]
            if not lowerable:
                return None
            gene = lowerable[int(rng.integers(len(lowerable)))]
            far = rng.random() < self._far
            values[gene] = int(rng.integers(values[gene])) if far else values[gene] - 1
            lowered.add(gene)
        start = Candidate(tuple(values))
        others = [g for g in range(len(values)) if g not in lowered]
        child = fill(self.problem.space, start, others, self.problem.constraints, rng)
        return None if child == start else child
