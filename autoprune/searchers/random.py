"""Random search: the baseline every method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.objective import Proposal, Result
from autoprune.searchers.checks import at_least
from autoprune.searchers.problem import Problem, step_rng
from autoprune.space import Candidate

TRIES = 50


class Random:
    """Uniform allocations first, then candidates around a random overall level, never the same one twice.

    windows: fitness windows an evaluation; batch: candidates an ask; ahead: batches that may be out at once.
    """

    def __init__(self, problem: Problem, windows: int = 8, batch: int = 32, ahead: int = 1) -> None:
        at_least("batch", batch, 1)
        at_least("ahead", ahead, 1)
        self.problem = problem
        self.batch, self.ahead = batch, ahead
        self._sizes = problem.sizes("random")
        self._fidelity = problem.fidelity(windows, "search.windows")
        self._seen: set[Candidate] = set()
        self._next = 0
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """True when no new candidate was found in many tries."""
        return self._exhausted

    def ask(self, n: int) -> list[Proposal]:
        """Up to n new candidates."""
        found: list[Proposal] = []
        while len(found) < n and not self._exhausted:
            candidate = self._new()
            if candidate is None:
                self._exhausted = True
            else:
                self._seen.add(candidate)
                found.append(Proposal(self._next, candidate, self._fidelity))
                self._next += 1
        return found

    def tell(self, results: Sequence[Result]) -> None:
        """Nothing is learnt."""

    def _new(self) -> Candidate | None:
        for seed in self.problem.seeds:
            if seed not in self._seen:
                return seed
        for attempt in range(TRIES):
            rng = step_rng(self.problem.seed, self._next * TRIES + attempt)
            candidate = self.problem.space.repair(self._draw(rng), self.problem.constraints, rng)
            if candidate not in self._seen:
                return candidate
        return None

    def _draw(self, rng: np.random.Generator) -> Candidate:
        """Each gene near a common level drawn from 0.2..1 of its options, spread by a normal of 0.25."""
        level = rng.uniform(0.2, 1.0)
        shares = np.clip(rng.normal(level, 0.25, len(self._sizes)), 0.0, 1.0)
        return Candidate(tuple(int(v) for v in np.rint(shares * (self._sizes - 1))))
