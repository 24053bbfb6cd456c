"""Option indices on their way down or up under bounds on any costs, one random step at a time (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoprune.objective import Constraint
from autoprune.space import Candidate
from autoprune.walk import Ints

Price = Callable[[Candidate], Mapping[str, float]]


class StepWalk:
    """As `Walk`, for costs that do not add up over genes: every step is priced whole.

    It needs that no cost rises when an option is lowered; of genes for which one does, `tops` has the last option.
    """

    def __init__(
        self,
        candidate: Candidate,
        constraints: Sequence[Constraint],
        price: Price,
        tops: Ints | None = None,
    ) -> None:
        self._candidate = candidate
        self._constraints = constraints
        self._price = price
        self._tops = tops

    def candidate(self) -> Candidate:
        """Where the walk stands."""
        return self._candidate

    def lower(self, rng: np.random.Generator) -> None:
        """Lower random genes, one option at a time, until every bound holds or all are at zero.

        Of the genes only those whose next lower option lessens a broken cost, while there are any. With `tops` genes
        are raised again from there where bounds are broken still.
        """
        now = self._price(self._candidate)
        useful = True
        while broken := [c for c in self._constraints if c.violation(now)]:
            pool = [g for g, value in enumerate(self._candidate.indices()) if value]
            if not pool:
                return self._climb(rng)
            useful = False
            while pool and not useful:
                at = int(rng.integers(len(pool)))
                lowered = self._step(pool[at], -1)
                cost = self._price(lowered)
                useful = any(cost[c.metric] < now[c.metric] for c in broken)
                if useful or len(pool) == 1:
                    self._candidate, now = lowered, cost
                pool[at] = pool[-1]
                pool.pop()

    def fill(self, highest: Ints, rng: np.random.Generator, goal: tuple[str, float] | None = None) -> None:
        """Raise random genes, one option at a time and none above `highest`, while every bound holds.

        With a goal only until that cost has reached its value.
        """
        pool = self._below(highest)
        while pool and (goal is None or self._price(self._candidate)[goal[0]] < goal[1]):
            at = int(rng.integers(len(pool)))
            gene = pool[at]
            raised = self._step(gene, 1)
            cost = self._price(raised)
            fits = not any(c.violation(cost) for c in self._constraints)
            if fits:
                self._candidate = raised
            if not fits or self._candidate.indices()[gene] >= highest[gene]:
                pool.remove(gene)

    def _climb(self, rng: np.random.Generator) -> None:
        """Raise random genes, one option at a time up to `tops`, until every bound holds; none that holds breaks."""
        now, pool = self._price(self._candidate), self._below(self._tops)
        while pool and any(c.violation(now) for c in self._constraints):
            gene = pool[int(rng.integers(len(pool)))]
            raised = self._step(gene, 1)
            cost = self._price(raised)
            if any(c.violation(cost) and not c.violation(now) for c in self._constraints):
                pool.remove(gene)
            else:
                self._candidate, now = raised, cost
                pool = [g for g in pool if g in self._below(self._tops)]

    def _below(self, highest: Ints | None) -> list[int]:
        values = self._candidate.indices()
        return [] if highest is None else [g for g, value in enumerate(values) if value < highest[g]]

    def _step(self, gene: int, by: int) -> Candidate:
        return self._candidate.with_value(gene, self._candidate.indices()[gene] + by)
