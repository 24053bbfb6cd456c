"""NSGA-II through pymoo's ask and tell, with operators that know the depth order of the genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import SettingError
from autoprune.objective import Proposal, Result
from autoprune.searchers.problem import Problem, step_rng
from autoprune.space import Candidate
from autoprune.walk import Walk

BAD = 1e30  # objective value of a failed or infeasible candidate
FLOOR = 1e-9  # below this a metric's logarithm says nothing


class NSGA2:
    """Non-dominated sorting with crowding; integer genes; seeded with uniform allocations.

    population: candidates a generation; windows: fitness windows an evaluation; crossover: share of offspring that
    join the shallow part of one parent to the deep part of the other at one cut (depth-ordered one-point crossover,
    which keeps whole prefixes and so shares their computation); mutation: mean number of mutated sites, null for 2;
    smallest: candidates below this share of the dense `params` are raised, since nobody wants them. Metrics in
    `log` are compared on a logarithmic scale, which matters for crowding only.
    """

    def __init__(
        self,
        problem: Problem,
        population: int = 64,
        windows: int = 4,
        crossover: float = 0.9,
        mutation: float | None = None,
        smallest: float = 0.3,
        log: Sequence[str] = ("kl", "nll"),
    ) -> None:
        if population < 4:
            raise SettingError(f"search.population={population} must be at least 4")
        if not 0.0 <= crossover <= 1.0:
            raise SettingError(f"search.crossover={crossover} is not between 0 and 1")
        if not 0.0 <= smallest <= 1.0:
            raise SettingError(f"search.smallest={smallest} is not between 0 and 1")
        if mutation is not None and mutation < 0.0:
            raise SettingError(f"search.mutation={mutation} must not be negative, or null")
        self.problem = problem
        self.batch = population
        self._sizes = problem.sizes("nsga2")
        self._fidelity = problem.fidelity(windows, "search.windows")
        self._log = frozenset(log)
        self._table = problem.space.cost_table("params")
        self._smallest = smallest
        self._next = 0
        self._steps = 0
        self._asked: Any = None
        self._exhausted = False
        self._algorithm = self._build(population, crossover, 2.0 if mutation is None else mutation)

    @property
    def finished(self) -> bool:
        """True when variation found no candidate that is not in the population already."""
        return self._exhausted

    def ask(self, n: int) -> list[Proposal]:
        """A whole generation, whatever n is: it is ranked as one."""
        if self._asked is not None or self._exhausted:
            return []
        self._asked = self._algorithm.ask()
        if self._asked is None:
            self._exhausted = True
            return []
        rows = self._asked.get("X").astype(int)
        proposals = [
            Proposal(self._next + i, Candidate(tuple(row.tolist())), self._fidelity)
            for i, row in enumerate(rows)
        ]
        self._next += len(proposals)
        return proposals

    def tell(self, results: Sequence[Result]) -> None:
        """Objective values of the generation or of its first part, in proposal order."""
        told = self._asked[: len(results)]
        told.set("F", np.array([self._values(r) for r in results]))
        for individual in told:
            individual.evaluated.update({"F"})
        self._algorithm.tell(infills=told)
        self._asked = None

    def _values(self, result: Result) -> list[float]:
        if not result.ok:
            return [BAD] * len(self.problem.objectives)
        pairs = zip(self.problem.objectives, self.problem.values(result), strict=True)
        return [float(np.log(max(v, FLOOR))) if o.metric in self._log else v for o, v in pairs]

    def _build(self, population: int, crossover: float, mutation: float) -> Any:
        from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.core.termination import NoTermination

        from autoprune.searchers.operators import DepthCrossover, SpaceRepair, StepMutation

        upper = self._sizes - 1
        target = PymooProblem(
            n_var=len(upper), n_obj=len(self.problem.objectives), xl=0 * upper, xu=upper, vtype=int
        )
        algorithm = PymooNSGA2(
            pop_size=population,
            sampling=self._first(population),
            crossover=DepthCrossover(crossover),
            mutation=StepMutation(mutation),
            repair=SpaceRepair(self._repair),
            eliminate_duplicates=True,
        )
        algorithm.setup(target, termination=NoTermination(), seed=self.problem.seed, verbose=False)
        return algorithm

    def _first(self, population: int) -> NDArray[np.int64]:
        """Seeds, then mutated seeds, all different where the space allows it."""
        rng = step_rng(self.problem.seed, 0)
        offered = [np.array(s.indices()) for s in self.problem.seeds]  # from large to small: keep both ends
        count = min(len(offered), max(1, population // 2))
        seeds = (
            [offered[i] for i in np.linspace(0, len(offered) - 1, count).round().astype(int)]
            if offered
            else []
        )
        seeds = seeds or [np.array(self.problem.space.dense.indices())]
        rows = {tuple(self._repair(s)): None for s in seeds}
        for _ in range(population * 50):
            if len(rows) >= population:
                break
            row = seeds[int(rng.integers(len(seeds)))] + rng.integers(-2, 3, len(self._sizes))
            rows.setdefault(tuple(self._repair(np.clip(row, 0, self._sizes - 1))))
        return np.array(list(rows)[:population])

    def _repair(self, row: NDArray[np.int64]) -> list[int]:
        """Into the constraints, and up to the smallest size of interest where the constraints allow it."""
        self._steps += 1
        rng = step_rng(self.problem.seed, self._steps)
        candidate = self.problem.space.repair(
            Candidate(tuple(int(v) for v in row)), self.problem.constraints, rng
        )
        return list(self._raise(candidate, rng).indices())

    def _raise(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        tables = [self.problem.space.cost_table(c.metric) for c in self.problem.constraints]
        additive = [t for t in tables if t is not None]
        if self._table is None or len(additive) < len(tables):
            return candidate
        walk = Walk(candidate, self.problem.constraints, additive)
        walk.fill(self._sizes - 1, rng, (self._table, self._smallest * self._table.dense))
        return walk.candidate()
