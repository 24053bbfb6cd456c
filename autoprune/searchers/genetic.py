"""Genetic search by pymoo's ask and tell: whole generations, seeded, repaired; the methods differ in who survives."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import SettingError
from autoprune.objective import Proposal, Result
from autoprune.searchers.checks import at_least, share
from autoprune.searchers.problem import Problem, step_rng
from autoprune.searchers.several import LOG, Fitting, Scale
from autoprune.space import Candidate

POPULATION = 4  # at least


class Genetic(ABC):
    """Integer genes, depth-ordered operators; a subclass names itself and makes its pymoo algorithm."""

    method: str

    def __init__(
        self,
        problem: Problem,
        population: int = 64,
        windows: int = 4,
        crossover: float = 0.9,
        mutation: float | None = None,
        smallest: float = 0.3,
        log: Sequence[str] = LOG,
        ahead: int = 1,
    ) -> None:
        at_least("population", population, POPULATION)
        at_least("ahead", ahead, 1)
        share("crossover", crossover)
        self.problem = problem
        self.batch, self.ahead = population, ahead
        self._sizes = problem.sizes(self.method)
        if mutation is not None and not 0 <= mutation <= len(self._sizes):
            raise SettingError(
                f"search.mutation={mutation} is not between 0 and the {len(self._sizes)} sites, or null"
            )
        self._fidelity = problem.fidelity(windows, "search.windows")
        self._scale = Scale(problem, log)
        self._fitting = Fitting(problem, self._sizes, smallest)
        self._next = 0
        self._steps = 0
        self._asked: deque[Any] = deque()  # generations that are out, oldest first
        self._exhausted = False
        self._algorithm = self._build(population, crossover, 2.0 if mutation is None else mutation)

    @abstractmethod
    def algorithm(self, population: int, **settings: Any) -> Any:
        """The pymoo algorithm of a population, with our sampling, operators and repair as its settings."""

    @property
    def finished(self) -> bool:
        """True when variation found no candidate that is not in the population already."""
        return self._exhausted

    def ask(self, n: int) -> list[Proposal]:
        """A whole generation, whatever n is: it is ranked as one."""
        if len(self._asked) >= self.ahead or self._exhausted:
            return []
        asked = self._generation()
        if asked is None:
            self._exhausted = not self._asked  # while some are out, what they bring may be bred from
            return []
        self._asked.append(asked)
        rows = asked.get("X").astype(int)
        proposals = [
            Proposal(self._next + i, Candidate(tuple(row.tolist())), self._fidelity)
            for i, row in enumerate(rows)
        ]
        self._next += len(proposals)
        return proposals

    def tell(self, results: Sequence[Result]) -> None:
        """The generation or its first part, in proposal order; what failed counts as a broken constraint."""
        told = self._asked.popleft()[: len(results)]
        none = [0.0] * len(self.problem.objectives)
        told.set("F", np.array([self._scale.values(r) if r.ok else none for r in results]))
        told.set("G", np.array([[-1.0 if r.ok else 1.0] for r in results]))
        for individual in told:
            individual.evaluated.update({"F", "G"})
        with warnings.catch_warnings():  # pymoo's NSGA-III turns all warnings of the process off
            self._algorithm.tell(infills=told)

    def _generation(self) -> Any:
        """Offspring of what was told so far; variations of the seeds while that is nothing."""
        if self._algorithm.is_initialized or not self._asked:
            return self._algorithm.ask()
        from pymoo.core.population import Population

        return Population.new(X=self._first(self.batch, len(self._asked)))

    def _build(self, population: int, crossover: float, mutation: float) -> Any:
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.core.termination import NoTermination

        from autoprune.searchers.operators import DepthCrossover, SpaceRepair, StepMutation

        upper, objectives = self._sizes - 1, len(self.problem.objectives)
        target = PymooProblem(
            n_var=len(upper), n_obj=objectives, n_ieq_constr=1, xl=0 * upper, xu=upper, vtype=int
        )
        algorithm = self.algorithm(
            population,
            sampling=self._first(population),
            crossover=DepthCrossover(crossover),
            mutation=StepMutation(mutation),
            repair=SpaceRepair(self._repair),
            eliminate_duplicates=True,
        )
        algorithm.setup(target, termination=NoTermination(), seed=self.problem.seed, verbose=False)
        return algorithm

    def _first(self, population: int, number: int = 0) -> NDArray[np.int64]:
        """Seeds, then mutated seeds, all different where the space allows it; mutated ones only after the first time.

        `number` counts the times.
        """
        rng = (
            step_rng(self.problem.seed, 0)
            if not number
            else np.random.default_rng([self.problem.seed, 0, number])
        )
        offered = [np.array(s.indices()) for s in self.problem.seeds]  # from large to small: keep both ends
        count = min(len(offered), max(1, population // 2))
        seeds = (
            [offered[i] for i in np.linspace(0, len(offered) - 1, count).round().astype(int)]
            if offered
            else []
        )
        seeds = seeds or [np.array(self.problem.space.dense.indices())]
        rows = {} if number else {tuple(self._repair(s)): None for s in seeds}
        for _ in range(population * 50):
            if len(rows) >= population:
                break
            row = seeds[int(rng.integers(len(seeds)))] + rng.integers(-2, 3, len(self._sizes))
            rows.setdefault(tuple(self._repair(np.clip(row, 0, self._sizes - 1))))
        return np.array(list(rows)[:population])

    def _repair(self, row: NDArray[np.int64]) -> list[int]:
        self._steps += 1
        return list(self._fitting.fit(row.tolist(), step_rng(self.problem.seed, self._steps)).indices())
