"""Level-switch evolution with growing fidelities (EvoPress, card A2; Týr's search loop, card A1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.searchers.checks import at_least
from autoprune.searchers.evolution import Evolution, Vary, changes
from autoprune.searchers.problem import Problem, fill
from autoprune.space import Candidate, OptionGene

EQUAL = 0.02  # options whose cost differs by less may be traded


class EvoPress(Evolution):
    """One elitist parent; offspring by level switches; survivors of each stage are scored on more windows.

    offspring: children a generation; survivors: how many pass each stage, the last one becomes the parent;
    windows: fitness windows of each stage, drawn afresh for every generation and stage; swaps: a child makes
    min(U{1..swaps}, U{1..swaps}) switches, each lowering one site by an option and raising another by one of equal
    cost; generations: how many at most, null for as many as the tokens pay for. The parent joins the last stage. One
    quality metric is searched: at the budget, or without constraints at each of the run's `targets`.
    """

    method = "evopress"

    def __init__(
        self,
        problem: Problem,
        offspring: int = 64,
        survivors: Sequence[int] = (8, 2, 1),
        windows: Sequence[int] = (1, 4, 16),
        swaps: int = 3,
        generations: int | None = None,
    ) -> None:
        super().__init__(problem, offspring, survivors, windows, generations)
        at_least("swaps", swaps, 1)
        self._swaps = swaps
        self._partners = _partners(problem)
        self._unequal = _unequal(problem)

    def variations(self) -> Sequence[Vary]:
        """Level switches; across kinds where no site can trade within its own."""
        return self._child, self._across

    def _child(self, rng: np.random.Generator) -> Candidate | None:
        """The parent after a few level switches, within the constraints; None when no switch was possible."""
        child = self.parent
        for _ in range(changes(rng, self._swaps)):
            exchange = self._unequal and rng.random() < 0.5
            child = self._exchange(child, rng) if exchange else self._switch(child, rng)
        if child == self.parent:
            return None
        repaired = self.problem.space.repair(child, self.problem.constraints, rng)
        if repaired == child:
            return child
        return fill(self.problem.space, repaired, range(len(self._sizes)), self.problem.constraints, rng)

    def _across(self, rng: np.random.Generator) -> Candidate | None:
        """One site lowered and the room filled elsewhere: for a parent whose kinds are all full or empty."""
        values = self.parent.indices()
        lowerable = [g for g, v in enumerate(values) if v > 0]
        if not lowerable:
            return None
        down = lowerable[int(rng.integers(len(lowerable)))]
        lowered = self.parent.with_value(down, int(rng.integers(values[down])))
        others = [g for g in range(len(values)) if g != down]
        child = fill(self.problem.space, lowered, others, self.problem.constraints, rng)
        return None if child == lowered else child

    def _exchange(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """Two sites of a kind trade their options: the published move of depth pruning, for unequal options."""
        values = list(candidate.indices())
        gene = int(rng.integers(len(values)))
        others = [
            g
            for g in self._partners[gene]
            if values[g] != values[gene] and self._sizes[g] == self._sizes[gene]
        ]
        if others:
            other = others[int(rng.integers(len(others)))]
            values[gene], values[other] = values[other], values[gene]
        return Candidate(tuple(values))

    def _switch(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        values = list(candidate.indices())
        lowerable = [g for g, v in enumerate(values) if v > 0]
        if not lowerable:
            return candidate
        down = lowerable[int(rng.integers(len(lowerable)))]
        raisable = [g for g in self._partners[down] if g != down and values[g] + 1 < self._sizes[g]]
        if not raisable:
            return candidate
        values[down] -= 1
        values[raisable[int(rng.integers(len(raisable)))]] += 1
        return Candidate(tuple(values))


def _partners(problem: Problem) -> list[list[int]]:
    """For each gene the genes it may trade an option with: those whose options cost the same, or of the same kind.

    The published method moves equally many weights between any two layers; where a kind's option is of another size,
    and for costs whose options are unequal, trading stays within the kind.
    """
    genes = [g for g in problem.space.genes if isinstance(g, OptionGene)]
    table = problem.space.cost_table(problem.constraints[0].metric)
    steps = [0.0] * len(genes)
    if table is not None:
        steps = [(row[-1] - row[0]) / max(1, len(row) - 1) for row in table.entries]

    def equal(i: int, j: int) -> bool:
        same = (genes[i].kind, genes[i].setting) == (genes[j].kind, genes[j].setting)
        return same or (steps[i] > 0 and abs(steps[i] - steps[j]) <= EQUAL * steps[i])

    return [[j for j in range(len(genes)) if equal(i, j)] for i in range(len(genes))]


def _unequal(problem: Problem) -> bool:
    """Whether a gene's options cost unequal steps, as latencies do: a removed sublayer saves more than a narrow one."""
    table = problem.space.cost_table(problem.constraints[0].metric)
    if table is None:
        return True
    steps = [np.diff(row) for row in table.entries if len(row) > 1]
    return any(s.max() > (1 + 5 * EQUAL) * max(s.min(), 0.0) for s in steps)
