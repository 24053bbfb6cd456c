"""Level-switch evolution with growing fidelities (EvoPress, card A2; Týr's search loop, card A1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Fidelity, Proposal, Result, Split
from autoprune.searchers.problem import Problem, fill, step_rng
from autoprune.space import Candidate, OptionGene

TRIES = 50
EQUAL = 0.02  # options whose cost differs by less may be traded


class EvoPress:
    """One elitist parent; offspring by level switches; survivors of each stage are scored on more windows.

    offspring: children a generation; survivors: how many pass each stage, the last one becomes the parent;
    windows: fitness windows of each stage, drawn afresh for every generation and stage; swaps: a child makes
    min(U{1..swaps}, U{1..swaps}) switches, each lowering one site by an option and raising another by one of equal
    cost; generations: how many at most, null for as many as the tokens pay for. The parent joins the last stage. One
    objective besides the constraint is searched: quality at the budget.
    """

    single_target = True  # of several targets each takes a phase of its own

    def __init__(
        self,
        problem: Problem,
        offspring: int = 64,
        survivors: Sequence[int] = (8, 2, 1),
        windows: Sequence[int] = (1, 4, 16),
        swaps: int = 3,
        generations: int | None = None,
    ) -> None:
        _check(problem, offspring, survivors, windows, swaps)
        if generations is not None and generations < 1:
            raise SettingError(f"search.generations={generations} must be at least 1, or null")
        self.problem = problem
        self.batch = offspring
        self._sizes = problem.sizes("evopress")
        self._survivors, self._windows, self._swaps = tuple(survivors), tuple(windows), swaps
        self._generations = generations
        self._partners = _partners(problem)
        self._unequal = _unequal(problem)
        self._parents = list(problem.seeds)
        self._next = 0
        self._step = 0
        self._generation = 0
        self._stage = -1  # -1: choosing among the seeds
        self._pool: list[Candidate] = self._start()
        self._waiting = False

    @property
    def parent(self) -> Candidate:
        """The best candidate so far."""
        return self._parents[0]

    @property
    def finished(self) -> bool:
        """True after the asked number of generations, or when the parent has no neighbour left."""
        return not self._pool or (self._generations is not None and self._generation >= self._generations)

    def ask(self, n: int) -> list[Proposal]:
        """The whole pool of the current stage at once, whatever n is: a stage is ranked on the same windows."""
        if self._waiting or self.finished:
            return []
        self._waiting = True
        fidelity = self._fidelity()
        proposals = [Proposal(self._next + i, c, fidelity) for i, c in enumerate(self._pool)]
        self._next += len(proposals)
        return proposals

    def tell(self, results: Sequence[Result]) -> None:
        """Keep the best of the stage; failures drop out, and a generation without survivors leaves the parent."""
        self._waiting = False
        ranked = sorted((self.problem.values(r)[0], i) for i, r in enumerate(results) if r.ok)
        best = [results[i].proposal.candidate for _, i in ranked]
        if self._stage < 0:
            self._parents = best[:1] or self._pool[:1]
            self._breed()
            self._join()
            return
        self._pool = best[: self._survivors[self._stage]]
        self._stage += 1
        if self._stage == len(self._windows) or not self._pool:
            self._parents = self._pool or self._parents
            self._generation += 1
            self._breed()
        self._join()

    def _join(self) -> None:
        """The parent enters the last stage: it is replaced only by who beats it on the same windows."""
        if self._pool and self._stage == len(self._windows) - 1 and self.parent not in self._pool:
            self._pool.append(self.parent)

    def _start(self) -> list[Candidate]:
        rng = step_rng(self.problem.seed, 0)
        seeds = self.problem.seeds or (self.problem.space.dense,)
        repaired = [self.problem.space.repair(s, self.problem.constraints, rng) for s in seeds]
        return list(dict.fromkeys(repaired))

    def _breed(self) -> None:
        self._stage = 0
        self._pool = self._children(self._child) or self._children(self._across)

    def _children(self, make: Callable[[np.random.Generator], Candidate | None]) -> list[Candidate]:
        children: dict[Candidate, None] = {}
        for _ in range(self.batch * TRIES):
            self._step += 1
            child = make(step_rng(self.problem.seed, self._step))
            if child is not None and child != self.parent:
                children.setdefault(child)
            if len(children) == self.batch:
                break
        return list(children)

    def _child(self, rng: np.random.Generator) -> Candidate | None:
        """The parent after a few level switches, within the constraints; None when no switch was possible."""
        child = self.parent
        count = min(rng.integers(1, self._swaps + 1), rng.integers(1, self._swaps + 1))
        for _ in range(int(count)):
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

    def _fidelity(self) -> Fidelity:
        """Windows of the stage; which ones depends on seed, generation and stage only."""
        count = self._windows[self._stage]  # choosing among the seeds, -1, is as careful as the last stage
        slots = self.problem.windows // count
        rng = np.random.default_rng([self.problem.seed, 1, self._generation, self._stage + 1])
        start = int(rng.integers(slots)) * count
        return Fidelity(Split.FITNESS, (start, start + count))


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


def _check(
    problem: Problem, offspring: int, survivors: Sequence[int], windows: Sequence[int], swaps: int
) -> None:
    if not problem.constraints:
        raise SettingError(
            "search=evopress works at one budget: set for example constraints='{params: 0.6x}'"
        )
    if len(survivors) != len(windows) or not survivors or survivors[-1] != 1:
        raise SettingError(
            f"search.survivors={list(survivors)} and search.windows={list(windows)} need equal lengths, and a last "
            "survivor of 1"
        )
    if list(survivors) != sorted(survivors, reverse=True) or survivors[0] > offspring or offspring < 1:
        raise SettingError(
            f"search.survivors={list(survivors)} must fall, from at most search.offspring={offspring}"
        )
    if swaps < 1:
        raise SettingError(f"search.swaps={swaps} must be at least 1")
    for count in windows:
        problem.fidelity(count, "search.windows")
