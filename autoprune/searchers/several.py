"""What methods for several objectives share: values on fitting scales, and candidates of a size that somebody wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.objective import Result
from autoprune.searchers import checks
from autoprune.searchers.problem import FLOOR, Problem
from autoprune.space import Candidate
from autoprune.stepwise import StepWalk
from autoprune.walk import Ints, Walk

LOG = ("kl", "nll")  # metrics compared on a logarithmic scale unless told otherwise


class Scale:
    """The objectives of usable results, all to be minimised, metrics named in `log` as logarithms."""

    def __init__(self, problem: Problem, log: Sequence[str] = LOG) -> None:
        self._problem = problem
        self._log = [o.metric in log for o in problem.objectives]

    def values(self, result: Result) -> list[float]:
        """One value an objective."""
        pairs = zip(self._log, self._problem.values(result), strict=True)
        return [float(np.log(max(value, FLOOR))) if log else value for log, value in pairs]


class Fitting:
    """Brings candidates within the constraints, and up to the smallest size of interest where these allow it."""

    def __init__(self, problem: Problem, sizes: Ints, smallest: float) -> None:
        """`smallest` is a share of the dense `params`; raises SettingError when it is none."""
        checks.smallest(smallest)
        self._problem = problem
        self._sizes = sizes
        self._table = problem.space.cost_table("params")
        self._goal = smallest * problem.space.cost(problem.space.dense)["params"]

    def fit(self, values: Sequence[int], rng: np.random.Generator) -> Candidate:
        """The candidate of these option indices, lowered and raised as needed."""
        raw = Candidate(tuple(int(v) for v in values))
        return self._raise(self._problem.space.repair(raw, self._problem.constraints, rng), rng)

    def _raise(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        tables = [self._problem.space.cost_table(c.metric) for c in self._problem.constraints]
        additive = [t for t in tables if t is not None]
        if self._table is None or len(additive) < len(tables):
            steps = StepWalk(candidate, self._problem.constraints, self._problem.space.cost)
            steps.fill(self._sizes - 1, rng, ("params", self._goal))
            return steps.candidate()
        walk = Walk(candidate, self._problem.constraints, additive)
        walk.fill(self._sizes - 1, rng, (self._table, self._goal))
        return walk.candidate()
