"""Hill climbing over single moves, from several starts: the simplest method that measures what it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autoprune.objective import Proposal, Result
from autoprune.searchers.checks import at_least, share
from autoprune.searchers.problem import Problem, fill, step_rng
from autoprune.space import Candidate

TRIES = 50


class Local:
    """Takes the better neighbours of one candidate until there is none, then starts again nearby.

    A neighbour raises one site by an option, and lowers another by as little as makes room for it. All are measured on
    the same windows. windows: fitness windows an evaluation; batch: neighbours an ask; first: move to the best of the
    first batch that holds a better one, false for the best of all neighbours; kick: share of the sites that a new
    start lowers before it fills up again; restarts: how many at most, null for as many as the tokens pay for.
    """

    single_target = True

    def __init__(
        self,
        problem: Problem,
        windows: int = 4,
        batch: int = 16,
        first: bool = True,
        kick: float = 0.2,
        restarts: int | None = None,
    ) -> None:
        at_least("batch", batch, 1)
        at_least("restarts", restarts, 0, null=True)
        share("kick", kick)
        problem.bounded("local")
        self.problem = problem
        self.batch = batch
        self._sizes = problem.sizes("local").tolist()
        self._quality = problem.quality("local")
        self._fidelity = problem.fidelity(windows, "search.windows")
        self._first, self._kick, self._restarts = first, kick, restarts
        self._known: dict[Candidate, float] = {}
        self._next = self._draws = self._started = 0
        self._waiting = False
        rng = step_rng(problem.seed, 0)
        seeds = problem.seeds or (problem.space.dense,)
        repaired = [problem.space.repair(s, problem.constraints, rng) for s in seeds]
        self._todo = list(dict.fromkeys(repaired))
        self._neighbours: Iterator[Candidate] = iter(())
        self._around: list[Candidate] = []  # the neighbours that were looked at
        self._at: Candidate | None = None  # None: choosing among starts

    @property
    def finished(self) -> bool:
        """True after the last restart, or when no start was found that has new neighbours."""
        return not self._todo

    @property
    def best(self) -> Candidate:
        """The best candidate so far."""
        return min(self._known, key=self._known.__getitem__)

    def ask(self, n: int) -> list[Proposal]:
        """The starts, or some neighbours, whatever n is."""
        if self._waiting:
            return []
        self._waiting = True
        proposals = [Proposal(self._next + i, c, self._fidelity) for i, c in enumerate(self._todo)]
        self._next += len(proposals)
        return proposals

    def tell(self, results: Sequence[Result]) -> None:
        """Move, look further or start again."""
        self._waiting = False
        for result in results:
            value = self._quality.value(result.metrics) if result.ok else np.inf
            self._known[result.proposal.candidate] = float(value)
        if self._at is None:
            told = [r.proposal.candidate for r in results]
            self._climb(min(told, key=self._known.__getitem__))
        elif self._first:
            self._move()
        self._todo = self._following()

    def _following(self) -> list[Candidate]:
        """What to ask next; empty when many restarts in a row led to what is known."""
        for _ in range(TRIES):
            if found := self._some():
                return found
            if self._move():
                continue
            if self._started == self._restarts:
                return []
            self._started += 1
            start = self._start()
            if start not in self._known:
                self._at = None
                return [start]
            self._climb(start)
        return []

    def _some(self) -> list[Candidate]:
        """The next neighbours that are not known."""
        found: list[Candidate] = []
        for neighbour in self._neighbours:
            self._around.append(neighbour)
            if neighbour not in self._known:
                found.append(neighbour)
            if len(found) == self.batch:
                break
        return found

    def _move(self) -> bool:
        """To the best known neighbour if it is better."""
        assert self._at is not None
        known = [c for c in self._around if c in self._known]
        best = min(known, key=self._known.__getitem__, default=self._at)
        if self._known[best] >= self._known[self._at]:
            return False
        self._climb(best)
        return True

    def _climb(self, start: Candidate) -> None:
        self._at = start
        self._draws += 1
        self._neighbours = self._moves(start, step_rng(self.problem.seed, self._draws))
        self._around = []

    def _start(self) -> Candidate:
        """The best so far with some sites lowered to anything, filled up to the budget."""
        self._draws += 1
        rng = step_rng(self.problem.seed, self._draws)
        values = list(self.best.indices())
        count = max(1, round(self._kick * len(values)))
        for gene in rng.permutation(len(values))[:count].tolist():
            values[gene] = int(rng.integers(values[gene] + 1))
        return fill(
            self.problem.space, Candidate(tuple(values)), range(len(values)), self.problem.constraints, rng
        )

    def _moves(self, start: Candidate, rng: np.random.Generator) -> Iterator[Candidate]:
        """All neighbours in random order."""
        values, count = start.indices(), len(self._sizes)
        for number in rng.permutation(count * count).tolist():
            up, down = divmod(number, count)
            if values[up] + 1 == self._sizes[up]:
                continue
            raised = start.with_value(up, values[up] + 1)
            if up == down:
                if self._fits(raised):
                    yield raised
            elif (lowered := self._room(raised, down)) is not None:
                yield lowered

    def _room(self, raised: Candidate, down: int) -> Candidate | None:
        for option in reversed(range(raised.indices()[down])):
            if self._fits(found := raised.with_value(down, option)):
                return found
        return None

    def _fits(self, candidate: Candidate) -> bool:
        cost = self.problem.space.cost(candidate)
        return not any(c.violation(cost) for c in self.problem.constraints)
